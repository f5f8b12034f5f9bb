"""``sharding=`` takes every option of one device, and changes none of them."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

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
from tests.sharding.test_sharded import SHARDINGS, close, make_mesh, problem

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
TILES = {"tiles": Tiles(token_tile=3, vocab_tile=200)}
# Each option in one pass and in two, if it can be, and each reduction.
EXACT = {
    "smoothing in one pass": {"label_smoothing": 0.1, "z_loss": 1e-2, "temperature": 0.7},
    "cap in one pass": {"soft_cap": 4.0, "reduction": "sum", "temperature": "each"},
    "class weights": {"class_weights": np.arange(1600) % 3 / 2},
    "a loss for each token": {"reduction": "none", "temperature": 1.5},
    "log-sum-exp": {
        "return_log_sum_exp": True, "soft_cap": 4.0, "label_smoothing": 0.2, "z_loss": 1e-2
    },
}  # fmt: skip


def scalar(result):
    """All of a result, each number by a weight of its own."""
    return sum((leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))).sum()
               for leaf in jax.tree.leaves(result))  # fmt: skip


def alternating(names):
    """(kind of axes, features_first, name): both of each, in turn."""
    for n, name in enumerate(names):
        yield (AUTO, EXPLICIT)[n % 2], n // 2 % 2 == 1, name


def other(kind):
    return EXPLICIT if kind is AUTO else AUTO


def assert_traces(function, arrays, wanted):
    """By the other kind of axes and layout: what they refuse they refuse when traced."""
    found = jax.eval_shape(function, *arrays)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, wanted)


WEIGHTS, EACH = np.ones((8, 3), np.float32), np.linspace(0.5, 2.0, 24, dtype=np.float32)
WEIGHTS[0, 1], WEIGHTS[2], EACH = 0, 3, EACH.reshape(8, 3)


def exact_problem(name):
    """A scalar of arrays, the arrays, and which of them it is differentiated by."""
    hidden, weight, bias, labels = problem()
    options = {**TILES, **EXACT[name], "ignore_index": 5}
    each = options.get("temperature") == "each"

    def loss(hidden, weight, bias, weights, temperature, **more):
        changed = {"temperature": temperature} if each else {}
        return scalar(
            linear_softmax_cross_entropy(
                hidden, weight, labels, bias=bias, token_weights=weights,
                **{**options, **changed, **more},
            )
        )  # fmt: skip

    return loss, (hidden, weight, bias, WEIGHTS, EACH), tuple(range(5 if each else 4))


def exact_by_hand(name):
    """The value of ``exact_problem`` and its gradients by five arrays, in NumPy."""
    hidden, weight, bias, labels = map(np.asarray, problem())
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


def features_first_weight(arrays):
    return (arrays[0], arrays[1].T, *arrays[2:])


@pytest.mark.parametrize(("kind", "features_first", "name"), [*alternating(EXACT)])
def test_exact_loss(kind, features_first, name):
    loss, arrays, where = exact_problem(name)
    wanted, gradients = exact_by_hand(name)
    gradients = gradients[: len(where)]

    def case(kind, features_first):
        split = SHARDINGS["vocab and tokens"](make_mesh(kind))
        sharded = partial(loss, sharding=split, features_first=features_first)
        turned = features_first_weight if features_first else tuple
        return jax.value_and_grad(sharded, where), turned(arrays), (wanted, turned(gradients))

    function, given, expected = case(kind, features_first)
    close(jax.jit(function)(*given), expected)
    assert_traces(*case(other(kind), not features_first))


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
    hidden, weight, bias, _ = problem()

    def top_k(weight, **options):
        options = {"bias": bias, "tiles": Tiles(vocab_tile=100), **options}
        return linear_top_k(hidden, weight, 450, **options)

    wanted, split = top_k(weight), SHARDINGS["vocab and tokens"](make_mesh(EXPLICIT))
    got = top_k(weight.T, features_first=True, sharding=split)
    np.testing.assert_array_equal(got.ids, wanted.ids)
    close(got.logits, wanted.logits)


def test_top_k_of_equal_logits_keeps_the_order_of_classes():
    sharding = SHARDINGS["vocab only"](make_mesh())
    ids = linear_top_k(jnp.ones((1, 2)), jnp.zeros((16, 2)), 9, sharding=sharding).ids
    assert ids.tolist() == [list(range(9))]


@cache
def evaluated():
    """Integers, of which each device sums the same; and what one device finds."""
    hidden, weight, bias = (np.asarray(2 * a).round() for a in problem()[:3])
    bias[:400] = -np.inf
    labels = np.array(problem()[3])
    exclude = np.random.default_rng(0).integers(-1, 1600, (*labels.shape, 400))
    labels[1, 2] = -1
    arrays = hidden, weight, bias, labels, exclude
    return arrays, evaluate(*arrays)


def evaluate(hidden, weight, bias, labels, exclude, **options):
    options = {"bias": bias, "exclude": exclude, "tiles": Tiles(vocab_tile=150), **options}
    return (
        linear_label_rank(hidden, weight, labels, ignore_index=-1, **options),
        linear_top_k(hidden, weight, 450, **options),  # more than a device has
    )


@pytest.mark.parametrize(("kind", "features_first", "name"), [*alternating(SHARDINGS)])
def test_evaluation(kind, features_first, name):
    """Whole shards of classes that are out, ties over several devices, one token left out."""
    arrays, wanted = evaluated()

    def case(kind, features_first):
        options = {"features_first": features_first, "sharding": SHARDINGS[name](make_mesh(kind))}
        given = features_first_weight(arrays) if features_first else arrays
        return partial(evaluate, **options), given

    function, given = case(kind, features_first)
    got = function(*given)
    assert_traces(*case(other(kind), not features_first), wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert wanted[0].ties.max() > 5


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
    ("loss", "kind", "features_first", "per_token"),
    [
        (sampled_softmax_cross_entropy, EXPLICIT, True, True),
        (sampled_softmax_cross_entropy, AUTO, False, False),
        (nce_loss, AUTO, False, True),
        (negative_sampling_loss, EXPLICIT, True, False),
        (gbce_loss, EXPLICIT, False, False),
        (bpr_max_loss, AUTO, True, True),
    ],
)
def test_sampled_losses(loss, kind, features_first, per_token):
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
        split = SHARDINGS["vocab and tokens"](make_mesh(kind))
        sharded = partial(value, features_first=features_first, sharding=split)
        turned = features_first_weight if features_first else tuple
        function = jax.value_and_grad(sharded, (0, 1, 2))
        return function, turned(arrays), (wanted, turned(gradients))

    function, given, expected = case(kind, features_first)
    close(jax.jit(function)(*given), expected)
    assert_traces(*case(other(kind), not features_first))
