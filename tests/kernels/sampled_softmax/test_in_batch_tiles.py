"""The in-batch loss by tiles: both directions, extra items, temperature, devices, memory."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jaxnets.kernels import ExtraItems, Tiles, VocabSharding, in_batch_softmax_cross_entropy
from jaxnets.kernels.sampled_softmax import reference
from tests.near import assert_near

BATCH, FEATURES, EXTRA = 8, 4, 5
DRAW = np.random.default_rng(0)
HIDDEN, ITEMS = DRAW.normal(size=(2, BATCH, FEATURES))
MORE = DRAW.normal(size=(EXTRA, FEATURES))
LABELS = jnp.array([3, 9, 3, 4, 5, 9, 7, 8])
MORE_LABELS = jnp.array([5, 11, 12, 3, 13])
LOG_P = np.log(DRAW.uniform(size=BATCH))
MORE_LOG_P = np.log(DRAW.uniform(size=EXTRA))
MASK = np.arange(BATCH) != 6
WEIGHTS = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 2.0])
TEMPERATURE = 0.7
TILES = Tiles(3, 5)  # of 8 queries and 14 items: the last is filled up, or moved back


def ours(hidden, items, more, temperature, **options):
    """The last extra item is none."""
    extra = ExtraItems(
        jnp.append(more, jnp.full((1, FEATURES), jnp.nan), 0),
        jnp.append(MORE_LABELS, 1),
        np.append(MORE_LOG_P, np.inf),
    )
    return in_batch_softmax_cross_entropy(
        hidden, items, LABELS, LOG_P, extra=extra, temperature=temperature, mask=MASK,
        token_weights=WEIGHTS, **options,
    )  # fmt: skip


def plain(symmetric, hidden, items, more, temperature):
    rows, columns = reference.in_batch_softmax_cross_entropy(
        hidden, items, LABELS, jnp.asarray(LOG_P),
        (more, MORE_LABELS, jnp.asarray(MORE_LOG_P)), temperature, jnp.asarray(MASK),
    )  # fmt: skip
    return ((rows + columns) / 2 if symmetric else rows) * WEIGHTS * MASK


def test_both_directions_are_those_of_whole_logits(x64):
    """The mean of one; a loss for each pair of both, on one device and on four."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    sharding = VocabSharding(mesh, None, ("a", "b"))
    both = {"symmetric": True, "reduction": "none"}
    factors = np.cos(np.arange(BATCH))
    functions = (
        lambda *a: ours(*a, tiles=TILES),
        lambda *a: plain(False, *a).sum() / (WEIGHTS * MASK).sum(),
        lambda *a: ours(*a, tiles=TILES, **both) * factors,
        lambda *a: ours(*a, tiles=Tiles(2, 4), sharding=sharding, **both) * factors,
        lambda *a: plain(True, *a) * factors,
    )

    @jax.jit
    def program(*arrays):
        return [
            jax.value_and_grad(lambda *a, f=f: f(*a).sum(), (0, 1, 2, 3))(*arrays)
            for f in functions
        ]

    mean, plain_mean, each, split, plain_each = program(HIDDEN, ITEMS, MORE, TEMPERATURE)
    assert_near(mean, plain_mean, 1e-12)
    assert_near(each, plain_each, 1e-12)
    assert_near(split, plain_each, 1e-12)
    for gradient in (*mean[1][:2], *split[1][:2]):
        assert not np.asarray(gradient)[~MASK].any()


def test_memory_is_not_that_of_whole_logits(strict_modes):
    """Which have a gigabyte."""
    batch = 4 * 4096

    @jax.jit
    def step(hidden, items, labels):
        def loss(*pairs):
            return in_batch_softmax_cross_entropy(*pairs, labels, symmetric=True)

        return jax.grad(loss, (0, 1))(hidden, items)

    pairs = [jax.ShapeDtypeStruct((batch, 32), jnp.float32)] * 2
    compiled = step.lower(*pairs, jax.ShapeDtypeStruct((batch,), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * batch**2 / 64
