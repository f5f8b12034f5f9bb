"""The sampled losses against the equation, TensorFlow's figures and the full softmax."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxnets.kernels import (
    LogUniform,
    Samples,
    Uniform,
    draw_samples,
    in_batch_samples,
    in_batch_softmax_cross_entropy,
    nce_loss,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.sampled_softmax import reference
from tests.exact_loss import exact_loss
from tests.fixed_samples import fixed_samples
from tests.inputs import on_device
from tests.near import assert_near
from tests.sampled_losses import sampled_loss, token_by_token
from tests.slopes import assert_backward

TENSORFLOW = dict(np.load(Path(__file__).parents[2] / "data" / "tensorflow.npz"))


def problem(num_true=1, per_token=False, vocab_size=60, tokens=7, features=5, num_sampled=16):
    draw = np.random.default_rng(0)  # of NumPy, which compiles nothing
    shapes = (tokens, features), (vocab_size, features), (vocab_size,)
    hidden, weight, bias = (on_device(draw.normal(size=shape)) for shape in shapes)
    log_uniform = np.exp(draw.uniform(0, np.log(vocab_size + 1), (tokens, num_true))) - 1
    labels = on_device(np.minimum(log_uniform.astype(int), vocab_size - 1))
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


# Each value of an argument meets each of every other. One program is for any arrays of a case.
CASES = [
    (sampled_softmax_cross_entropy, 1, False, {"remove_accidental_hits": False}),
    (negative_sampling_loss, 3, False, {"remove_accidental_hits": False}),
    (nce_loss, 1, True, {"remove_accidental_hits": True, "subtract_log_q": False}),
    (nce_loss, 1, True, {"remove_accidental_hits": False, "reduction": "sum"}),
    (sampled_softmax_cross_entropy, 3, True, {"remove_accidental_hits": True}),
    (sampled_softmax_cross_entropy, 3, False, {"subtract_log_q": False}),
]


@pytest.mark.parametrize(
    ("loss", "num_true", "per_token", "options"),
    [pytest.param(*case, marks=() if i else pytest.mark.smoke) for i, case in enumerate(CASES)],
)
def test_losses_equal_the_equation(x64, strict_modes, loss, num_true, per_token, options):
    """And what is left out, by weights, ignored labels and log-counts, leaves no trace."""
    hidden, weight, bias, labels, samples = problem(num_true, per_token)

    @jax.jit
    def program(hidden, weight, bias, weights, labels, samples):
        def value(hidden, weight, bias, weights):
            own = labels if num_true > 1 else labels[:, 0]
            return loss(
                hidden, weight, own, samples, bias=bias, token_weights=weights, ignore_index=-100,
                **options,
            )  # fmt: skip

        return jax.value_and_grad(value, (0, 1, 2, 3))(hidden, weight, bias, weights)

    arrays = hidden, weight, bias, np.random.default_rng(7).uniform(size=7), labels, samples
    plain = jax.tree.map(np.array, arrays)
    own = dict(options)
    if loss is negative_sampling_loss:
        own |= {"subtract_log_q": False}
    kind = "softmax" if loss is sampled_softmax_cross_entropy else "nce"
    for given, clean in ((plain, plain), some_left_out(*plain, per_token)):
        value, gradients = program(*given)
        hidden, weight, bias, weights, labels, samples = clean
        wanted, expected, kept = token_by_token(
            kind, hidden, weight, labels, samples, bias, weights, ignored=-100, **own
        )
        assert np.isfinite(gradients[3]).all()
        assert not np.asarray(gradients[0])[~kept].any()
        of_weights = np.where(kept, gradients[3], 0), np.where(kept, expected[3], 0)
        same((value, gradients[:3], of_weights[0]), (wanted, expected[:3], of_weights[1]))


def some_left_out(hidden, weight, bias, weights, labels, samples, per_token):
    """Four of seven tokens, or some of their labels, with bad things in them; and without those."""
    samples = Samples(*map(np.array, samples))
    counts = samples.labels_log_expected_count
    weights, labels = weights.copy(), labels.copy()
    weights[[1, 3, 4]] = 0
    labels[0, :-1] = labels[2, 1:] = labels[5] = -100  # of one label a token, just the last is out
    samples.log_expected_count[..., 2] = np.inf  # no candidate
    counts[6] = -np.inf  # never drawn: not corrected
    clean = hidden, weight, bias, weights, labels, samples
    hidden, labels, samples = hidden.copy(), labels.copy(), Samples(*map(np.copy, samples))
    hidden[1], hidden[3, 0], hidden[4], hidden[5] = np.nan, np.inf, -np.inf, np.nan
    labels[1], labels[3], labels[4] = -100, 67, -1
    samples.labels_log_expected_count[[1, 3]] = np.nan
    if per_token:
        samples.ids[1], samples.ids[3], samples.log_expected_count[4] = -3, 60, np.nan
    return (hidden, weight, bias, weights, labels, samples), clean


def same(actual, wanted):
    """Offsets are float32, so a few float32 roundings of log-counts near 5 are shared by both."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-11), actual, wanted
    )


@pytest.mark.parametrize("num_true", [1, 3])
def test_the_reference_is_the_equation_by_hand(x64, num_true):
    """With each token's samples of its own where it has several labels.

    And the gradients by hand are its slopes, by differences that compile nothing.
    """
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
    def every(hidden, weight, bias):
        return {
            kind: function(hidden, weight, labels, columns, bias=bias, **options)
            for kind, (function, options) in kinds.items()
        }

    arrays = tuple(map(np.asarray, (hidden, weight, bias)))
    for kind, found in every(*arrays).items():
        own = kinds[kind][1]

        def by_hand(hidden, weight, bias, kind=kind, own=own):
            return sampled_loss(kind, hidden, weight, labels, samples, bias, **own)

        losses, backward = by_hand(*arrays)
        same(found, losses)
        assert_backward(by_hand, arrays, backward(cotangent), [cotangent])


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
        on_device(figures["ids"], jnp.int32),
        on_device(figures["log_expected_count"]),
        on_device(counts),
        jnp.int32(12),
    )

    def ours(weight, bias, hidden):
        losses = loss(
            hidden, weight, jnp.asarray(labels), samples, bias=bias, reduction="none",
            remove_accidental_hits=remove,
        )  # fmt: skip
        return losses.sum(), losses

    arrays = [on_device(figures[k]) for k in ("weight", "bias", "hidden")]
    derivative = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))
    (_, losses), gradients = derivative(*arrays)
    key = f"{name}_{num_true}_{remove}"
    # Both are float32 sums of at most 15 terms.
    np.testing.assert_allclose(losses, figures[f"{key}_loss"], rtol=2e-6, atol=2e-6)
    for variable, gradient in zip(("weight", "bias", "hidden"), gradients, strict=True):
        np.testing.assert_allclose(gradient, figures[f"{key}_{variable}"], rtol=1e-5, atol=4e-6)


def test_all_classes_sampled_is_the_full_softmax(x64):
    hidden, weight, bias, labels, _ = problem()
    labels = labels[:, 0]
    samples = draw_samples(LogUniform(60), jax.random.key(1), 60, labels)
    (sampled,) = derived(
        (0, 1, 2), lambda h, w, b: sampled_softmax_cross_entropy(h, w, labels, samples, bias=b)
    )(hidden, weight, bias)
    losses, _, backward = exact_loss(hidden, weight, labels, bias)
    full = losses.mean(), tuple(backward(1 / 7)[:3])
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-13), sampled, full
    )


@pytest.mark.parametrize(
    ("sampler", "sizes", "unique"),
    [(LogUniform(400), (5, 320), True), (Uniform(400), (5, 24), False)],
    ids=["log_uniform", "uniform"],
)
def test_bias_of_the_gradient_shrinks_with_num_sampled(sampler, sizes, unique):
    """The mean gradient over draws nears the full softmax's as num_sampled grows.

    The mean over n draws has a standard error s; |mean - full|^2 - trace(s^2) estimates |bias|^2
    without bias. Its fall is tested one-sided at 1e-3 (normal approximation, the spread taken over
    40 groups of draws).
    """
    draw = np.random.default_rng(5)
    hidden = on_device(draw.normal(size=(32, 8)), jnp.float32)
    weight = on_device(0.7 * draw.normal(size=(400, 8)), jnp.float32)
    labels = on_device(np.exp(draw.uniform(0, np.log(401), 32)).astype(int) - 1)
    logits = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    full = (softmax - np.eye(400)[np.asarray(labels)]) @ np.asarray(weight, np.float64) / 32

    @jax.jit(static_argnums=1)
    def gradients(keys, num_sampled):
        def one(key):
            samples = draw_samples(sampler, key, num_sampled, labels, unique=unique)
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
    fewer, more = estimates
    assert stats.ttest_rel(fewer, more, alternative="greater")[1] < 1e-3
    assert sizes[-1] < 320 or more.mean() < 1e-2 * fewer.mean()


@pytest.mark.smoke
def test_in_batch_softmax_is_a_softmax_over_the_batch(x64):
    draw = np.random.default_rng(6)
    hidden, items = draw.normal(size=(2, 6, 4))
    labels = np.array([3, 9, 3, 4, 5, 9])
    log_p = on_device(np.log(draw.uniform(size=6)))

    def ours(hidden, items):
        return in_batch_softmax_cross_entropy(hidden, items, labels, log_p)

    (actual,) = derived((0, 1), ours)(hidden, items)
    same = (labels[:, None] == labels) & ~np.eye(6, dtype=bool)
    logits = np.where(same, -np.inf, hidden @ items.T - np.asarray(log_p))
    d_logits = (special.softmax(logits, 1) - np.eye(6)) / 6
    loss = -np.diagonal(special.log_softmax(logits, 1)).mean()
    expected = loss, (d_logits @ items, d_logits.T @ hidden)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-13), actual, expected
    )


def test_in_batch_samples_leave_repeats_out(x64):
    hidden, weight, bias, _, _ = problem()
    labels, log_p = np.array([3, 9, 3, 4, 5, 9, 3]), np.full(7, -2.0)
    samples = in_batch_samples(labels, log_p)
    kept = np.array([0, 1, 3, 4])
    fewer = samples._replace(
        ids=np.asarray(samples.ids)[kept],
        log_expected_count=np.asarray(samples.log_expected_count)[kept],
    )

    def loss(weight):
        return sampled_softmax_cross_entropy(hidden, weight, labels, samples, bias=bias)

    ((value, gradient),) = derived(0, loss)(weight)
    losses, backward = sampled_loss("softmax", hidden, weight, labels, fewer, bias)
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-10)
    assert_near(gradient, backward(1 / 7)[1], 1e-10)


def test_bfloat16_is_accumulated_in_float32():
    hidden, weight, _, labels, samples = problem(tokens=64, features=32, vocab_size=500)
    half = tuple(np.asarray(x).astype(jnp.bfloat16) for x in (hidden, np.asarray(weight) / 6))

    def loss(hidden, weight):
        return sampled_softmax_cross_entropy(hidden, weight, labels[:, 0], samples)

    ((value, gradients),) = derived((0, 1), loss)(*half)
    losses, backward = sampled_loss("softmax", *half, labels[:, 0], samples)
    expected, exact = losses.mean(), backward(1 / 64)[:2]
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
