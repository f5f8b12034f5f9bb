"""The sampled losses against the equation, TensorFlow's figures and the full softmax."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxnets.kernels import (
    LogUniform,
    Samples,
    Uniform,
    draw_samples,
    in_batch_samples,
    in_batch_softmax_cross_entropy,
    linear_softmax_cross_entropy,
    nce_loss,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.sampled_softmax import reference
from tests.fixed_samples import fixed_samples
from tests.near import assert_near
from tests.sampled_losses import sampled_loss
from tests.slopes import assert_slopes

TENSORFLOW = dict(np.load(Path(__file__).parents[2] / "data" / "tensorflow.npz"))


def problem(num_true=1, per_token=False, vocab_size=60, tokens=7, features=5, num_sampled=16):
    draw = np.random.default_rng(0)  # of NumPy, which compiles nothing
    shapes = (tokens, features), (vocab_size, features), (vocab_size,)
    hidden, weight, bias = (jnp.asarray(draw.normal(size=shape)) for shape in shapes)
    log_uniform = np.exp(draw.uniform(0, np.log(vocab_size + 1), (tokens, num_true))) - 1
    labels = jnp.asarray(np.minimum(log_uniform.astype(int), vocab_size - 1))
    ids = np.stack([draw.permutation(vocab_size)[:num_sampled] for _ in range(tokens)])
    own = labels if num_true > 1 else labels[:, 0]
    return (
        hidden,
        weight,
        bias,
        labels,
        fixed_samples(vocab_size, own, ids if per_token else ids[0]),
    )


def derived(where, *functions):
    """Values and gradients of each function of the same arrays, by one program."""
    return jax.jit(lambda *arrays: [jax.value_and_grad(f, where)(*arrays) for f in functions])


# Each value of an argument meets each of every other.
@pytest.mark.parametrize(
    ("num_true", "per_token", "subtract_log_q", "remove_accidental_hits"),
    [
        pytest.param(1, False, False, False, marks=pytest.mark.smoke),
        (1, True, True, True),
        (3, False, True, True),
        (3, True, False, True),
        (3, True, True, False),
    ],
)
def test_losses_equal_the_equation(
    x64, num_true, per_token, subtract_log_q, remove_accidental_hits
):
    hidden, weight, bias, labels, samples = problem(num_true, per_token)
    options = {"subtract_log_q": subtract_log_q, "remove_accidental_hits": remove_accidental_hits}
    own = labels if num_true > 1 else labels[:, 0]
    weights = np.random.default_rng(7).uniform(size=7)
    functions = [
        lambda h, w, b, weights, loss=loss: loss(
            h, w, own, samples, bias=b, token_weights=weights, **options
        )
        for loss in (sampled_softmax_cross_entropy, nce_loss)
    ]
    found = derived((0, 1, 2, 3), *functions)(hidden, weight, bias, weights)
    for kind, actual in zip(("softmax", "nce"), found, strict=True):
        losses, backward = sampled_loss(kind, hidden, weight, own, samples, bias, **options)
        value, factors = (losses * weights).sum() / weights.sum(), weights / weights.sum()
        wanted = value, (*backward(factors), (losses - value) / weights.sum())
        same(actual, wanted)


def same(actual, wanted):
    """Offsets are float32, so a few float32 roundings of log-counts near 5 are shared by both."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-11), actual, wanted
    )


@pytest.mark.parametrize("num_true", [1, 3])
def test_the_reference_is_the_equation_by_hand(x64, num_true):
    """With each token's samples of its own where it has several labels."""
    hidden, weight, bias, labels, samples = problem(num_true, per_token=num_true > 1)
    counts = samples.labels_log_expected_count.reshape(labels.shape)
    columns, cotangent = samples._replace(labels_log_expected_count=counts), np.cos(np.arange(7))
    options = {"subtract_log_q": num_true > 1, "remove_accidental_hits": num_true > 1}
    ranking = {"remove_accidental_hits": num_true > 1}
    kinds = {
        "softmax": (reference.sampled_softmax_cross_entropy, options),
        "nce": (reference.noise_contrastive, options),
        "gbce": (reference.generalized_bce, {**ranking, "calibration": 0.4}),
        "bpr": (reference.bpr, ranking),
        "bpr-max": (reference.bpr_max, {**ranking, "score_regularization": 0.3}),
    }

    @jax.jit
    def every(*arrays):
        found = {}
        for kind, (function, options) in kinds.items():
            losses, backward = jax.vjp(
                lambda h, w, b, f=function, o=options: f(h, w, labels, columns, bias=b, **o),
                *arrays,
            )
            found[kind] = losses, backward(cotangent)
        return found

    for kind, found in every(hidden, weight, bias).items():
        own = kinds[kind][1]
        losses, backward = sampled_loss(kind, hidden, weight, labels, samples, bias, **own)
        same(found, (losses, backward(cotangent)))


@pytest.mark.smoke
def test_negative_sampling_is_nce_without_log_counts(x64):
    hidden, weight, bias, labels, samples = problem()
    loss = negative_sampling_loss(
        hidden, weight, labels[:, 0], samples, bias=bias, reduction="none"
    )
    hidden, weight, bias, labels, ids = map(np.asarray, (hidden, weight, bias, labels, samples.ids))
    true = (hidden * weight[labels[:, 0]]).sum(1) + bias[labels[:, 0]]
    sampled = hidden @ weight[ids].T + bias[ids]
    expected = np.log1p(np.exp(-true)) + np.log1p(np.exp(sampled)).sum(1)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("num_true", "remove", "name", "loss"),
    [
        (1, False, "nce", nce_loss),
        (1, True, "softmax", sampled_softmax_cross_entropy),
        (3, False, "softmax", sampled_softmax_cross_entropy),
        (3, True, "nce", nce_loss),
    ],
)
def test_figures_of_tensorflow(num_true, remove, name, loss):
    """Its losses and gradients for fixed ids (tests/data/make_tensorflow_figures.py)."""
    figures = TENSORFLOW
    labels = figures[f"labels_{num_true}"].astype(np.int32)
    counts = figures[f"labels_log_expected_count_{num_true}"]
    if num_true == 1 and name == "softmax":
        labels, counts = labels[:, 0], counts[:, 0]
    samples = Samples(
        jnp.asarray(figures["ids"], jnp.int32),
        jnp.asarray(figures["log_expected_count"]),
        jnp.asarray(counts),
        jnp.int32(12),
    )

    def ours(weight, bias, hidden):
        losses = loss(
            hidden, weight, jnp.asarray(labels), samples, bias=bias, reduction="none",
            remove_accidental_hits=remove,
        )  # fmt: skip
        return losses.sum(), losses

    arrays = [jnp.asarray(figures[k]) for k in ("weight", "bias", "hidden")]
    derivative = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))
    (_, losses), gradients = derivative(*arrays)
    key = f"{name}_{num_true}_{remove}"
    # Both are float32 sums of at most 15 terms.
    np.testing.assert_allclose(losses, figures[f"{key}_loss"], rtol=2e-6, atol=2e-6)
    for variable, gradient in zip(("weight", "bias", "hidden"), gradients, strict=True):
        np.testing.assert_allclose(gradient, figures[f"{key}_{variable}"], rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("per_token", [False, True])
def test_gradients_numerically(x64, per_token):
    hidden, weight, bias, labels, samples = problem(
        per_token=per_token, vocab_size=20, num_sampled=6
    )

    def loss(hidden, weight, bias):
        return sampled_softmax_cross_entropy(hidden, weight, labels[:, 0], samples, bias=bias)

    assert_slopes(loss, (hidden, weight, bias), 1e-7)


def test_all_classes_sampled_is_the_full_softmax(x64):
    hidden, weight, bias, labels, _ = problem()
    labels = labels[:, 0]
    samples = draw_samples(LogUniform(60), jax.random.key(1), 60, labels)
    sampled, full = derived(
        (0, 1, 2),
        lambda h, w, b: sampled_softmax_cross_entropy(h, w, labels, samples, bias=b),
        lambda h, w, b: linear_softmax_cross_entropy(h, w, labels, bias=b),
    )(hidden, weight, bias)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-13), sampled, full
    )


@pytest.mark.parametrize(
    ("sampler", "sizes"),
    [(LogUniform(400), (5, 24, 320)), (Uniform(400), (5, 24))],
    ids=["log_uniform", "uniform"],
)
def test_bias_of_the_gradient_shrinks_with_num_sampled(sampler, sizes):
    """The mean gradient over draws nears the full softmax's as num_sampled grows and grows.

    The mean over n draws has a standard error s; |mean - full|^2 - trace(s^2) estimates |bias|^2
    without bias. Each of the two falls is tested one-sided at 1e-3 (normal approximation, the
    spread taken over 40 groups of draws): false alarms below 2e-3.
    """
    draw = np.random.default_rng(5)
    hidden = jnp.asarray(draw.normal(size=(32, 8)), jnp.float32)
    weight = jnp.asarray(0.7 * draw.normal(size=(400, 8)), jnp.float32)
    labels = jnp.asarray(np.exp(draw.uniform(0, np.log(401), 32)).astype(int) - 1)
    logits = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    full = (softmax - np.eye(400)[np.asarray(labels)]) @ np.asarray(weight, np.float64) / 32

    @jax.jit(static_argnums=1)
    def gradients(keys, num_sampled):
        def one(key):
            samples = draw_samples(sampler, key, num_sampled, labels)
            return jax.grad(sampled_softmax_cross_entropy)(hidden, weight, labels, samples)

        return jax.lax.map(one, keys, batch_size=50)

    groups, draws = 40, 50
    estimates = []
    for num_sampled in sizes:
        g = np.asarray(
            gradients(jax.random.split(jax.random.key(5), groups * draws), num_sampled), np.float64
        )
        g = (g - full).reshape(groups, draws, -1)
        # Inner products of means of different groups have the squared bias as their expectation.
        means = g.mean(1)
        total = means.sum(0)
        estimates.append((means @ total - (means**2).sum(1)) / (groups - 1))
    for fewer, more in itertools.pairwise(estimates):
        assert stats.ttest_rel(fewer, more, alternative="greater")[1] < 1e-3
    assert sizes[-1] < 320 or estimates[-1].mean() < 1e-2 * estimates[0].mean()


@pytest.mark.smoke
def test_in_batch_softmax_is_a_softmax_over_the_batch(x64):
    draw = np.random.default_rng(6)
    hidden, items = draw.normal(size=(2, 6, 4))
    labels = jnp.array([3, 9, 3, 4, 5, 9])
    log_p = jnp.asarray(np.log(draw.uniform(size=6)))

    def theirs(hidden, items):
        logits = hidden @ items.T - log_p
        same = (labels[:, None] == labels) & ~jnp.eye(6, dtype=bool)
        logits = jnp.where(same, -jnp.inf, logits)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(6)).mean()

    def ours(hidden, items):
        return in_batch_softmax_cross_entropy(hidden, items, labels, log_p)

    actual, expected = derived((0, 1), ours, theirs)(hidden, items)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-13), actual, expected
    )
    assert_slopes(ours, (hidden, items), 1e-7)


def test_in_batch_samples_leave_repeats_out(x64):
    hidden, weight, bias, _, _ = problem()
    labels = jnp.array([3, 9, 3, 4, 5, 9, 3])
    log_p = jnp.full(7, -2.0)
    samples = in_batch_samples(labels, log_p)
    kept = np.array([0, 1, 3, 4])
    fewer = samples._replace(
        ids=np.asarray(samples.ids)[kept],
        log_expected_count=np.asarray(samples.log_expected_count)[kept],
    )

    def loss(samples):
        return lambda weight: sampled_softmax_cross_entropy(
            hidden, weight, labels, samples, bias=bias
        )

    (value, gradient), (expected, wanted) = derived(0, loss(samples), loss(fewer))(weight)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert_near(gradient, wanted, 1e-12)


def test_bfloat16_is_accumulated_in_float32():
    hidden, weight, _, labels, samples = problem(tokens=64, features=32, vocab_size=500)
    half = tuple(np.asarray(x).astype(jnp.bfloat16) for x in (hidden, np.asarray(weight) / 6))
    wide = tuple(x.astype(np.float32) for x in half)

    def loss(hidden, weight):
        return sampled_softmax_cross_entropy(hidden, weight, labels[:, 0], samples)

    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    (value, gradients), (expected, exact) = both(*half), both(*wide)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    # The shared rows are scattered into a bfloat16 table: a few roundings where a class repeats.
    assert_near(gradients, exact, 8 * float(jnp.finfo(jnp.bfloat16).eps))


def test_lowers_for_accelerators():
    (hidden, weight), labels = (np.ones((n, 4), np.float32) for n in (8, 100)), np.arange(8)

    def loss(hidden, weight, key):
        samples = draw_samples(LogUniform(100), key, 4, labels)
        return sampled_softmax_cross_entropy(hidden, weight, labels, samples)

    exported = jax.export.export(jax.jit(jax.grad(loss, (0, 1))), platforms=["tpu", "cuda"])(
        hidden, weight, jax.random.PRNGKey(0)
    )
    assert exported.platforms == ("tpu", "cuda")
