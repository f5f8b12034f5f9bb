"""``sharding=`` takes every option of one device, and changes none of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxnets.kernels import (
    LogUniform,
    Tiles,
    draw_samples,
    linear_softmax_cross_entropy,
    linear_top_k,
    nce_loss,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)
from tests.sharding.test_sharded import SHARDINGS, close, make_mesh, problem

KINDS = [AxisType.Auto, AxisType.Explicit]
TILES = {"tiles": Tiles(token_tile=3, vocab_tile=200)}
EXACT = {
    "one pass": {},
    "smoothing in one pass": {"label_smoothing": 0.1, "z_loss": 1e-2},
    "cap in one pass": {"soft_cap": 4.0, "reduction": "sum"},
    "cap and smoothing": {"soft_cap": 4.0, "label_smoothing": 0.2},
    "temperature": {"temperature": 0.7},
    "temperature of each token": {"temperature": "each"},
    "a loss for each token": {"reduction": "none", "temperature": 1.5},
    "log-sum-exp": {"return_log_sum_exp": True, "z_loss": 1e-2},
}


def scalar(result):
    """All of a result, each number by a weight of its own."""
    return sum((leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))).sum()
               for leaf in jax.tree.leaves(result))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_exact_loss(kind, features_first, name):
    hidden, weight, bias, labels = problem()
    weight = weight.T if features_first else weight
    weights = jnp.ones(labels.shape).at[0, 1].set(0).at[2].set(3.0)
    options = {**TILES, **EXACT[name], "features_first": features_first, "ignore_index": 5}
    each = jnp.linspace(0.5, 2.0, labels.size).reshape(labels.shape)

    def loss(hidden, weight, bias, weights, temperature, sharding=None):
        changed = {"temperature": temperature} if options.get("temperature") == "each" else {}
        return scalar(
            linear_softmax_cross_entropy(
                hidden, weight, labels, bias=bias, token_weights=weights, sharding=sharding,
                **{**options, **changed},
            )
        )  # fmt: skip

    arrays = hidden, weight, bias, weights, each
    where = (0, 1, 2, 3, 4) if options.get("temperature") == "each" else (0, 1, 2, 3)
    wanted = jax.value_and_grad(loss, where)(*arrays)
    split = SHARDINGS["vocab and tokens"](make_mesh(kind))
    close(jax.jit(jax.value_and_grad(lambda *a: loss(*a, sharding=split), where))(*arrays), wanted)


def test_the_gradient_of_a_mean_computes_each_logit_once():
    """The one-pass gradient, as on one device: a product less than that of a loss a token."""
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
    assert products("mean", split) < products("none", split)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features_first", [False, True])
def test_top_k(kind, features_first):
    hidden, weight, bias, _ = problem()
    weight = weight.T if features_first else weight
    options = {"bias": bias, "features_first": features_first, "tiles": Tiles(vocab_tile=100)}
    for name in SHARDINGS:
        wanted = linear_top_k(hidden, weight, 450, **options)
        got = linear_top_k(
            hidden, weight, 450, sharding=SHARDINGS[name](make_mesh(kind)), **options
        )
        np.testing.assert_array_equal(got.ids, wanted.ids)
        close(got.logits, wanted.logits)


def test_top_k_of_equal_logits_keeps_the_order_of_classes():
    sharding = SHARDINGS["vocab only"](make_mesh())
    ids = linear_top_k(jnp.ones((1, 2)), jnp.zeros((16, 2)), 9, sharding=sharding).ids
    assert ids.tolist() == [list(range(9))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("loss", [sampled_softmax_cross_entropy, nce_loss, negative_sampling_loss])
def test_sampled_losses(kind, features_first, per_token, loss):
    """Several true classes, some of them and one token left out."""
    hidden, weight, bias, first = problem()
    weight = weight.T if features_first else weight
    labels = jnp.stack([first, (first + 7) % 1600], axis=-1).at[1, 0, 1].set(-1).at[2, 1].set(-1)
    hidden = hidden.at[2, 1].set(jnp.nan)
    samples = draw_samples(
        LogUniform(1600), jax.random.key(5), 40, first, unique=False, per_token=per_token
    )
    counts = jnp.stack([samples.labels_log_expected_count] * 2, axis=-1)
    samples = samples._replace(labels_log_expected_count=counts)

    def value(hidden, weight, bias, sharding=None):
        losses = loss(
            hidden, weight, labels, samples, bias=bias, ignore_index=-1, reduction="none",
            features_first=features_first, sharding=sharding,
        )  # fmt: skip
        return scalar(losses)

    split = SHARDINGS["vocab and tokens"](make_mesh(kind))
    wanted = jax.value_and_grad(value, (0, 1, 2))(hidden, weight, bias)
    got = jax.jit(jax.value_and_grad(lambda *a: value(*a, sharding=split), (0, 1, 2)))(
        hidden, weight, bias
    )
    close(got, wanted)
