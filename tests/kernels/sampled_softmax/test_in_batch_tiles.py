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
    """Both forms; the mean, then a loss for each pair. The last extra item is none."""
    extra = ExtraItems(
        jnp.append(more, jnp.full((1, FEATURES), jnp.nan), 0),
        jnp.append(MORE_LABELS, 1),
        np.append(MORE_LOG_P, np.inf),
    )
    return [
        in_batch_softmax_cross_entropy(
            hidden, items, LABELS, LOG_P, extra=extra, temperature=temperature, mask=MASK,
            token_weights=WEIGHTS, symmetric=symmetric, reduction=reduction, **options,
        )
        for symmetric, reduction in ((False, "mean"), (True, "none"))
    ]  # fmt: skip


def plain(hidden, items, more, temperature):
    rows, columns = reference.in_batch_softmax_cross_entropy(
        hidden, items, LABELS, jnp.asarray(LOG_P),
        (more, MORE_LABELS, jnp.asarray(MORE_LOG_P)), temperature, jnp.asarray(MASK),
    )  # fmt: skip
    weights = WEIGHTS * MASK
    return [(rows * weights).sum() / weights.sum(), (rows + columns) / 2 * weights]


def derived(*functions):
    """The values of each, and the gradients of a weighted sum of them; one program."""

    def total(function, *arrays):
        mean, losses = function(*arrays)
        return mean + (losses * jnp.cos(jnp.arange(BATCH))).sum(), (mean, losses)

    def program(*arrays):
        return [
            jax.value_and_grad(lambda *a, f=function: total(f, *a), (0, 1, 2, 3), has_aux=True)(
                *arrays
            )
            for function in functions
        ]

    return jax.jit(program)(HIDDEN, ITEMS, MORE, TEMPERATURE)


def test_both_directions_are_those_of_whole_logits(x64):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    sharding = VocabSharding(mesh, None, ("a", "b"))
    got, split, wanted = derived(
        lambda *a: ours(*a, tiles=TILES),
        lambda *a: ours(*a, tiles=Tiles(2, 4), sharding=sharding),
        plain,
    )
    assert_near(got, wanted, 1e-12)
    assert_near(split, wanted, 1e-12)
    assert not np.asarray(got[1][0])[~MASK].any()


def test_memory_grows_with_the_batch_and_not_with_its_square():
    @jax.jit
    def step(hidden, items, labels):
        def loss(*pairs):
            return in_batch_softmax_cross_entropy(*pairs, labels, symmetric=True)

        return jax.grad(loss, (0, 1))(hidden, items)

    def temporaries(batch):
        pairs = [jax.ShapeDtypeStruct((batch, 32), jnp.float32)] * 2
        labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
        return step.lower(*pairs, labels).compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(4096), temporaries(4 * 4096)
    assert large < 4.5 * small
    assert large < 4096**2
