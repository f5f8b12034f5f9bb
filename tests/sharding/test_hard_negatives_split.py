"""The losses and tools that look for hard negatives, split over devices: those of one device."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnets.kernels import (
    CandidateQueue,
    VocabSharding,
    hardest_samples,
    in_batch_softmax_cross_entropy,
    scalable_cross_entropy,
)
from tests.fixed_samples import fixed_samples
from tests.kernels.sampled_softmax.test_scalable import in_numpy
from tests.near import assert_near
from tests.sharding.split import SHARDINGS, make_mesh

VOCAB, FEATURES, TOKENS = 48, 4, 16
DRAW = np.random.default_rng(0)
HIDDEN = DRAW.normal(size=(TOKENS, FEATURES)).astype(np.float32)
WEIGHT = DRAW.normal(size=(VOCAB, FEATURES)).astype(np.float32)
BIAS = DRAW.normal(size=VOCAB).astype(np.float32)
BIAS[12:24] = -np.inf  # a whole shard of classes that are out
LABELS = DRAW.integers(24, VOCAB, TOKENS)
LABELS[5] = -1
WEIGHTS = DRAW.uniform(0.5, 2, TOKENS).astype(np.float32)
WEIGHTS[9] = 0
EACH = DRAW.normal(size=TOKENS).astype(np.float32)
SHARED, OWN = DRAW.integers(0, VOCAB, 10), DRAW.integers(0, VOCAB, (TOKENS, 10))
TOLERANCE = 64 * float(np.finfo(np.float32).eps)


def hardest(hidden, weight, bias, **options):
    each = [fixed_samples(VOCAB, LABELS.clip(0), ids) for ids in (SHARED, OWN)]
    options = {"ignore_index": -1, **options, "bias": bias}
    return [hardest_samples(hidden, weight, LABELS, samples, 4, **options) for samples in each]


def program(hidden, weight, bias, features_first=False, sharding=None):
    """SCE by tokens, with gradients, and the hardest of shared and of own samples."""
    options = {"ignore_index": -1, "features_first": features_first, "sharding": sharding}

    def loss(hidden, weight, bias):
        losses = scalable_cross_entropy(
            hidden, weight, LABELS, jax.random.key(3), num_buckets=5, tokens_per_bucket=5,
            classes_per_bucket=9, bias=bias, token_weights=WEIGHTS, reduction="none", **options,
        )  # fmt: skip
        return (losses * EACH).sum()

    hard = hardest(hidden, weight, bias, **options)
    return jax.value_and_grad(loss, (0, 1, 2))(hidden, weight, bias), hard


@cache
def on_one_device():
    """Losses and gradients in NumPy, and the hardest."""
    kept = (LABELS != -1) & (WEIGHTS != 0)
    best, backward = in_numpy(HIDDEN, WEIGHT, BIAS, LABELS, kept, 5, 5, 9)
    factors = np.where(np.isnan(best), 0, WEIGHTS * EACH)
    value = (np.nan_to_num(best) * factors).sum()
    return (value, backward(factors)), jax.jit(hardest)(HIDDEN, WEIGHT, BIAS)


@pytest.mark.parametrize(
    ("kind", "name", "features_first"),
    [
        (AxisType.Auto, "vocab over all", False),
        (AxisType.Explicit, "vocab and tokens", True),
    ],
)
def test_buckets_and_the_hardest_are_those_of_one_device(kind, name, features_first):
    (value, (d_hidden, d_weight, d_bias)), hard = on_one_device()
    sharding = SHARDINGS[name](make_mesh(kind))
    specs = sharding.token_spec, sharding.weight_spec(features_first), sharding.table_spec
    arrays = HIDDEN, WEIGHT.T if features_first else WEIGHT, BIAS
    placed = jax.device_put(arrays, tuple(NamedSharding(sharding.mesh, spec) for spec in specs))
    split = partial(program, features_first=features_first, sharding=sharding)
    (got, gradients), chosen = jax.jit(split)(*placed)
    d_weight = d_weight.T if features_first else d_weight
    assert_near((got, gradients), (value, (d_hidden, d_weight, d_bias)), TOLERANCE, 1e-3)
    for gradient, array in zip(gradients, placed, strict=True):
        assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)
    jax.tree.map(np.testing.assert_array_equal, chosen, hard)


def queue_step(queue, hidden, items, labels, sharding=None):
    def loss(hidden, items):
        return in_batch_softmax_cross_entropy(
            hidden, items, labels, ignore_index=-1, extra=queue.extra, sharding=sharding
        )

    queue = queue.push(items, labels, mask=labels >= 0)
    return queue, jax.value_and_grad(loss, (0, 1))(hidden, items)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_queue_is_whole_on_devices_that_split_the_batch(kind):
    queue = jax.jit(CandidateQueue.create(24, FEATURES).push)(WEIGHT[:20], LABELS[:1].repeat(20))
    batch = HIDDEN, WEIGHT[:TOKENS], LABELS
    wanted = jax.jit(queue_step)(queue, *batch)
    mesh = make_mesh(kind)
    sharding = VocabSharding(mesh, None, "data") if kind is AxisType.Auto else None
    placed = jax.device_put(
        (queue, batch), (NamedSharding(mesh, P()), NamedSharding(mesh, P("data")))
    )
    got, found = jax.jit(partial(queue_step, sharding=sharding))(placed[0], *placed[1])
    jax.tree.map(np.testing.assert_array_equal, got, wanted[0])
    assert_near(found, wanted[1], TOLERANCE, 1e-3)
    for array in jax.tree.leaves(got):
        assert array.sharding.is_fully_replicated
