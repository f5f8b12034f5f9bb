"""``sharding=`` takes every option of one device, and changes none of them."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from jaxnets.kernels import (
    Tiles,
    bpr_max_loss,
    gbce_loss,
    linear_label_rank,
    linear_softmax_cross_entropy,
    linear_top_k,
    nce_loss,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)
from tests import exact_loss as equation
from tests.fixed_samples import fixed_samples
from tests.inputs import changed
from tests.sampled_losses import sampled_loss
from tests.sharding.split import SHARDINGS, assert_traces, close, make_mesh, other, problem

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
TILES = {"tiles": Tiles(token_tile=3, vocab_tile=200)}
# In one pass and, the last two, in two: each option, and each reduction.
EXACT = {
    "class weights": {
        "class_weights": np.arange(1600) % 3 / 2, "z_loss": 1e-2, "temperature": 0.7
    },
    "cap and smoothing": {
        "soft_cap": 4.0, "label_smoothing": 0.1, "reduction": "sum", "temperature": "each"
    },
    "a loss for each token": {"reduction": "none", "temperature": 1.5},
    "log-sum-exp": {
        "return_log_sum_exp": True, "soft_cap": 4.0, "label_smoothing": 0.2, "z_loss": 1e-2
    },
}  # fmt: skip


def scalar(result):
    """All of a result, each number by a weight of its own."""
    return sum((leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))).sum()
               for leaf in jax.tree.leaves(result))  # fmt: skip


def placed(sharding, features_first, hidden, weight, bias, *of_tokens):
    """The arrays as the sharding splits them."""
    weight = weight.T if features_first else weight
    specs = sharding.token_spec, sharding.weight_spec(features_first), sharding.table_spec
    specs += (sharding.token_spec,) * len(of_tokens)
    layouts = tuple(NamedSharding(sharding.mesh, spec) for spec in specs)
    return jax.device_put((hidden, weight, bias, *of_tokens), layouts)


def turned(gradients, features_first):
    """As those of ``placed`` arrays."""
    return (gradients[0], gradients[1].T if features_first else gradients[1], *gradients[2:])


WEIGHTS, EACH = np.ones((8, 3), np.float32), np.linspace(0.5, 2.0, 24, dtype=np.float32)
WEIGHTS[0, 1], WEIGHTS[2], EACH = 0, 3, EACH.reshape(8, 3)


def exact_problem(name, dtype):
    """A scalar of arrays, the arrays, and which of them it is differentiated by."""
    hidden, weight, bias, labels = problem(dtype)
    options = {**TILES, **EXACT[name], "ignore_index": 5}
    each = options.get("temperature") == "each"

    def loss(hidden, weight, bias, weights, temperature, labels, **more):
        changed = {"temperature": temperature} if each else {}
        return scalar(
            linear_softmax_cross_entropy(
                hidden, weight, labels, bias=bias, token_weights=weights,
                **{**options, **changed, **more},
            )
        )  # fmt: skip

    return loss, (hidden, weight, bias, WEIGHTS, EACH, labels), tuple(range(5 if each else 4))


def exact_by_hand(name, dtype):
    """The value of ``exact_problem`` and its gradients by five arrays, in NumPy."""
    hidden, weight, bias, labels = map(np.asarray, problem(dtype))
    options = dict(EXACT[name])
    reduction, with_z = options.pop("reduction", "mean"), options.pop("return_log_sum_exp", False)
    by_class = options.pop("class_weights", np.ones(1600))[labels] * (labels != 5)
    if options.get("temperature") == "each":
        options["temperature"] = EACH
    kept, waves = WEIGHTS * by_class, np.cos(np.arange(24)).reshape(8, 3)
    losses, z, backward = equation.exact_loss(hidden, weight, labels, bias, **options)
    losses, of_z = np.where(kept, losses, 0), np.where(kept, waves * with_z, 0)
    factors = {"none": waves, "sum": 1.0, "mean": 1 / kept.sum()}[reduction]
    value = (factors * losses * kept).sum()
    if "class_weights" in EXACT[name]:
        by_class = by_class * (WEIGHTS != 0)  # the products have no trace of what is left out
    d_weights = factors * losses - (value / kept.sum() if reduction == "mean" else 0)
    *gradients, d_temperature = backward(factors * kept, of_z)
    return value + (of_z * z).sum(), (*gradients, d_weights * by_class, d_temperature)


# How the arrays are split, and what by: both kinds of axes, layouts and dtypes, in turn.
@pytest.mark.parametrize(
    ("name", "split", "kind", "features_first", "dtype"),
    [
        ("class weights", "vocab and tokens", AUTO, False, jnp.float32),
        ("cap and smoothing", "vocab over all", EXPLICIT, False, jnp.bfloat16),
        ("a loss for each token", "vocab only", AUTO, True, jnp.bfloat16),
        ("log-sum-exp", "tokens only", EXPLICIT, True, jnp.float32),
    ],
)
def test_exact_loss(name, split, kind, features_first, dtype):
    def case(kind, features_first, dtype):
        loss, arrays, where = exact_problem(name, dtype)
        sharding = SHARDINGS[split](make_mesh(kind))
        sharded = partial(loss, sharding=sharding, features_first=features_first)
        value, gradients = exact_by_hand(name, dtype)
        gradients = tuple(np.asarray(gradients[n], arrays[n].dtype) for n in where)
        wanted = np.float32(value), turned(gradients, features_first)
        return jax.value_and_grad(sharded, where), placed(sharding, features_first, *arrays), wanted

    function, given, wanted = case(kind, features_first, dtype)
    got = jax.jit(function)(*given)
    close(got, wanted, dtype)
    for gradient, array in zip(got[1], given, strict=False):
        assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)
    swapped = jnp.bfloat16 if dtype == jnp.float32 else jnp.float32
    assert_traces(*case(other(kind), not features_first, swapped))


def test_the_gradient_of_a_mean_computes_each_logit_once():
    """The one-pass gradient, as on one device: a product less than that of a loss a token.

    Beside it two for the shift: of a few classes, and of all where that fails.
    """
    hidden, weight, bias, labels = problem()

    def products(reduction, sharding=None):
        def loss(hidden, weight, bias):
            return linear_softmax_cross_entropy(
                hidden, weight, labels, bias=bias, reduction=reduction, sharding=sharding
            ).sum()

        program = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(hidden, weight, bias))
        return len(re.findall(r":f32\[\d+,\d+\] = dot_general", program))  # of matrices

    split = SHARDINGS["vocab and tokens"](make_mesh())
    assert 0 < products("mean", split) == products("mean")
    assert products("mean", split) - 2 < products("none", split)


def test_top_k():
    """Outside of ``jit``."""
    hidden, weight, bias, _ = problem()
    split = SHARDINGS["vocab and tokens"](make_mesh(EXPLICIT))
    options = {"bias": bias, "tiles": Tiles(vocab_tile=100)}
    got = linear_top_k(hidden, weight.T, 450, features_first=True, sharding=split, **options)
    logits = np.float64(hidden) @ np.float64(weight).T + np.float64(bias)
    wanted = np.argsort(-logits)[..., :450]
    np.testing.assert_array_equal(got.ids, wanted)
    close(got.logits, np.take_along_axis(logits, wanted, -1))


def test_top_k_of_equal_logits_keeps_the_order_of_classes():
    sharding = SHARDINGS["vocab only"](make_mesh())
    ids = linear_top_k(jnp.ones((1, 2)), jnp.zeros((16, 2)), 9, sharding=sharding).ids
    assert ids.tolist() == [list(range(9))]


@cache
def evaluated():
    """Integers, of which each device sums the same; and what is found of them, in NumPy."""
    hidden, weight, bias = (np.asarray(2 * a).round() for a in map(np.asarray, problem()[:3]))
    bias[:400] = -np.inf
    labels = np.array(problem()[3])
    exclude = np.random.default_rng(0).integers(-1, 1600, (*labels.shape, 400))
    labels[1, 2] = -1
    logits = hidden @ weight.T + bias
    inside = np.broadcast_to(np.isfinite(bias), logits.shape).copy()
    for token in np.ndindex(labels.shape):
        inside[token][exclude[token][exclude[token] >= 0]] = False
    own = np.take_along_axis(logits, labels[..., None], -1)
    others = inside & (np.arange(1600) != labels[..., None])
    counts = [(others & found).sum(-1) for found in (logits > own, logits == own)]
    above, ties = (np.where(labels == -1, -1, count) for count in counts)
    kept = np.where(inside, logits, -np.inf)
    ids = np.argsort(-kept, axis=-1, kind="stable")[..., :450]  # more than a device has
    best = np.take_along_axis(kept, ids, -1)
    return (hidden, weight, bias, labels, exclude), (above, ties, best, ids)


def evaluate(hidden, weight, bias, labels, exclude, **options):
    options = {"bias": bias, "exclude": exclude, "tiles": Tiles(vocab_tile=150), **options}
    rank = linear_label_rank(hidden, weight, labels, ignore_index=-1, **options)
    best = linear_top_k(hidden, weight, 450, **options)
    return rank.above, rank.ties, best.logits, best.ids


@pytest.mark.parametrize(
    ("name", "kind", "features_first"),
    [
        (name, (AUTO, EXPLICIT)[n % 2], n // 2 % 2 == 1)  # both of each, in turn
        for n, name in enumerate(SHARDINGS)
    ],
)
def test_evaluation(name, kind, features_first):
    """Whole shards of classes that are out, ties over several devices, one token left out."""
    (hidden, weight, *rest), wanted = evaluated()

    def case(kind, features_first):
        options = {"features_first": features_first, "sharding": SHARDINGS[name](make_mesh(kind))}
        given = hidden, weight.T if features_first else weight, *rest
        return partial(evaluate, **options), given

    function, given = case(kind, features_first)
    got = jax.jit(function)(*given)
    assert_traces(*case(other(kind), not features_first), got)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert wanted[1].max() > 5


KEEPING_HITS = {"remove_accidental_hits": False}
KINDS = {
    sampled_softmax_cross_entropy: ("softmax", {}),
    nce_loss: ("nce", KEEPING_HITS),
    negative_sampling_loss: ("nce", {**KEEPING_HITS, "subtract_log_q": False}),
    gbce_loss: ("gbce", {}),
    bpr_max_loss: ("bpr-max", {}),
}


def sampled_by_hand(loss, hidden, weight, bias, labels, samples):
    """A scalar of the losses of tokens that have a label, and its gradients, in NumPy."""
    kind, options = KINDS[loss]
    hidden, weight, waves = np.asarray(hidden), np.asarray(weight), np.cos(np.arange(24.0))
    value, d_hidden, others = 0.0, np.zeros(hidden.shape), [0.0, 0.0]
    for count in (1, 2):
        these = (labels >= 0).sum(-1) == count
        few = samples._replace(
            labels_log_expected_count=samples.labels_log_expected_count[these][:, :count]
        )
        if samples.ids.ndim > 1:
            each = {"ids": samples.ids, "log_expected_count": samples.log_expected_count}
            few = few._replace(**{name: array[these] for name, array in each.items()})
        losses, backward = sampled_loss(
            kind, hidden[these], weight, labels[these][:, :count], few, bias, **options
        )
        factors = waves.reshape(8, 3)[these]
        value += (factors * losses).sum()
        d_hidden[these], *more = backward(factors)
        others = [a + b for a, b in zip(others, more, strict=True)]
    return value, (d_hidden, *others)


@pytest.mark.parametrize(
    ("loss", "split", "kind", "features_first", "per_token"),
    [
        (sampled_softmax_cross_entropy, "vocab over all", EXPLICIT, True, True),
        (nce_loss, "tokens only", AUTO, False, True),
        (negative_sampling_loss, "vocab and tokens", EXPLICIT, True, False),
        (gbce_loss, "vocab over all", EXPLICIT, False, False),
        (bpr_max_loss, "vocab and tokens", AUTO, True, True),
    ],
)
def test_sampled_losses(loss, split, kind, features_first, per_token):
    """Several true classes, some of them and one token left out."""
    hidden, weight, bias, first = problem()
    labels = np.stack([first, (first + 7) % 1600], axis=-1)
    ids = np.random.default_rng(5).integers(0, 1600, (8, 3, 40) if per_token else 40)
    samples = fixed_samples(1600, labels, ids)
    labels[1, 0, 1] = labels[2, 1] = -1
    hidden = changed(hidden, (2, 1), np.nan)

    def value(hidden, weight, bias, **options):
        losses = loss(
            hidden, weight, labels, samples, bias=bias, ignore_index=-1, reduction="none", **options
        )
        return scalar(losses)

    arrays = hidden, weight, bias
    wanted, gradients = sampled_by_hand(loss, *arrays, labels, samples)

    def case(kind, features_first):
        sharding = SHARDINGS[split](make_mesh(kind))
        sharded = partial(value, features_first=features_first, sharding=sharding)
        expected = jax.tree.map(np.float32, (wanted, turned(gradients, features_first)))
        function = jax.value_and_grad(sharded, (0, 1, 2))
        return function, placed(sharding, features_first, *arrays), expected

    function, given, expected = case(kind, features_first)
    close(jax.jit(function)(*given), expected)
    assert_traces(*case(other(kind), not features_first))
