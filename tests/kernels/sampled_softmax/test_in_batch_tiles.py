"""The in-batch loss by tiles: both directions, extra items, temperature, devices, memory."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from scipy import special

from jaxnets.kernels import ExtraItems, Tiles, VocabSharding, in_batch_softmax_cross_entropy
from jaxnets.kernels.sampled_softmax import reference
from tests.near import assert_near
from tests.slopes import assert_backward

BATCH, FEATURES, EXTRA = 8, 4, 5
DRAW = np.random.default_rng(0)
HIDDEN, ITEMS = DRAW.normal(size=(2, BATCH, FEATURES))
MORE = DRAW.normal(size=(EXTRA, FEATURES))
LABELS = np.array([3, 9, 3, 4, 5, 9, 7, 8])
MORE_LABELS = np.array([5, 11, 12, 3, 13])
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


def by_hand(symmetric, hidden, items, more, temperature):
    """The losses in NumPy, and what takes their cotangent to those of the arrays."""
    keys = np.concatenate([items, more])
    scores = hidden @ keys.T / temperature
    same = LABELS[:, None] == np.concatenate([LABELS, MORE_LABELS])
    own = np.eye(BATCH, len(keys), dtype=bool)
    there = np.concatenate([MASK, np.ones(EXTRA, bool)])
    rows = np.where(same & ~own | ~there, -np.inf, scores - np.append(LOG_P, MORE_LOG_P))
    columns = np.where((same & ~own)[:, :BATCH].T | ~MASK, -np.inf, scores[:, :BATCH].T)
    right = np.diagonal(scores)
    losses = special.logsumexp(rows, 1) - (right - LOG_P)
    if symmetric:
        losses = (losses + special.logsumexp(columns, 1) - right) / 2

    def backward(d_losses):
        d_losses = np.asarray(d_losses)[:, None] / (2 if symmetric else 1)
        d_scores = d_losses * (special.softmax(rows, 1) - own)
        if symmetric:
            d_scores[:, :BATCH] += (d_losses * (special.softmax(columns, 1) - np.eye(BATCH))).T
        d_keys = d_scores.T @ hidden / temperature
        d_temperature = -(d_scores * scores).sum() / temperature
        return d_scores @ keys / temperature, d_keys[:BATCH], d_keys[BATCH:], d_temperature

    return losses, backward


def test_both_directions_are_those_of_whole_logits(x64):
    """The mean of one; a loss for each pair of both, on one device and on four."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    sharding = VocabSharding(mesh, None, ("a", "b"))
    both = {"symmetric": True, "reduction": "none"}
    factors = np.cos(np.arange(BATCH))
    functions = (
        lambda *a: ours(*a, tiles=TILES),
        lambda *a: ours(*a, tiles=TILES, **both) * factors,
        lambda *a: ours(*a, tiles=Tiles(2, 4), sharding=sharding, **both) * factors,
    )

    @jax.jit
    def program(*arrays):
        of_batch = map(jnp.asarray, (LABELS, LOG_P))
        of_more = map(jnp.asarray, (MORE_LABELS, MORE_LOG_P))
        plain = reference.in_batch_softmax_cross_entropy(
            *arrays[:2], *of_batch, (arrays[2], *of_more), arrays[3], jnp.asarray(MASK)
        )
        return plain, [
            jax.value_and_grad(lambda *a, f=f: f(*a).sum(), (0, 1, 2, 3))(*arrays)
            for f in functions
        ]

    arrays = HIDDEN, ITEMS, MORE, np.array(TEMPERATURE)
    (rows, columns), found = program(*arrays)
    counted, kept = WEIGHTS * MASK, MASK
    shares = counted / counted.sum(), counted * factors, counted * factors
    for got, share, symmetric in zip(found, shares, (False, True, True), strict=True):
        losses, backward = by_hand(symmetric, *arrays)
        plain = (rows + columns) / 2 if symmetric else rows
        np.testing.assert_allclose(losses[kept], np.asarray(plain)[kept], rtol=1e-12)
        assert_backward(lambda *a, s=symmetric: by_hand(s, *a), arrays, backward(share), [share])
        assert_near(got, ((losses * share).sum(), backward(share)), 1e-12)
        for gradient in got[1][:2]:
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
