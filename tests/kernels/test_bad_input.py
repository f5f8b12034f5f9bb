"""Bad input gets an error that names the argument, what was given and what was expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxnets.kernels import (
    LearnedUnigram,
    LogUniform,
    Samples,
    Tiles,
    Uniform,
    Unigram,
    bpr_loss,
    bpr_max_loss,
    checked_loss,
    draw_samples,
    gather_rows,
    gbce_loss,
    in_batch_samples,
    in_batch_softmax_cross_entropy,
    linear_softmax_cross_entropy,
    linear_top_k,
    nce_loss,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)
from tests.inputs import on_device, ones

pytestmark = pytest.mark.usefixtures("users_checks")

SAMPLED = [
    sampled_softmax_cross_entropy,
    nce_loss,
    negative_sampling_loss,
    gbce_loss,
    bpr_loss,
    bpr_max_loss,
]
GOOD = {
    "hidden": ones((4, 3)),
    "weight": ones((10, 3)),
    "bias": ones(10),
    "labels": on_device(np.arange(4)),
}


SAMPLES = jax.jit(lambda: Samples.from_candidates(np.arange(5), np.arange(4)))()


def exact(**options):
    return linear_softmax_cross_entropy(**{**GOOD, **options})


def sampled(loss, **options):
    return loss(**{**GOOD, "samples": SAMPLES, **options})


SHARED = [
    (
        {"hidden": ones((4, 5))},
        ValueError,
        r"hidden.*features = weight.shape\[1\] = 3.*\(4, 5\)",
    ),
    ({"weight": ones((3, 10))}, ValueError, "weight looks transposed"),
    ({"weight": ones(3)}, ValueError, r"weight must be \[vocab, features\], got shape \(3,\)"),
    ({"bias": ones(3)}, ValueError, r"bias must be \[vocab\] = \(10,\)"),
    ({"hidden": ones((4, 3), int)}, TypeError, "hidden must be floating point, got int32"),
    ({"labels": ones(4)}, TypeError, "labels must be integer class ids, got dtype float32"),
    ({"labels": on_device(np.arange(3))}, ValueError, r"labels must have shape \(4,\)"),
    ({"labels": on_device([0, 1, 2, 10])}, ValueError, r"labels must lie in .* \[0, 10\), got 10"),
    ({"labels": np.array([0, -1, 2, 3])}, ValueError, "got -1"),
    (
        {"token_weights": ones(3)},
        ValueError,
        r"token_weights must have one value a token, shape \(4,\)",
    ),
    ({"reduction": "average"}, ValueError, "reduction must be one of .*'average'"),
]


@pytest.mark.parametrize(("options", "error", "message"), SHARED)
def test_exact_and_sampled_losses_alike(options, error, message):
    with pytest.raises(error, match=message):
        exact(**options)
    for loss in SAMPLED:
        with pytest.raises(error, match=message):
            sampled(loss, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.5}, r"label_smoothing must lie in \[0, 1\], got 1.5"),
        ({"z_loss": -1.0}, "z_loss must be at least 0, got -1.0"),
        ({"soft_cap": 0.0}, "soft_cap must be above 0, got 0.0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"tiles": (128, 1024)}, "tiles must be Tiles or None, got tuple"),
    ],
)
def test_options_of_the_exact_loss(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        exact(**options)


def test_tiles_of_no_size():
    with pytest.raises(ValueError, match="token_tile must be at least 1, got 0"):
        Tiles(token_tile=0)
    with pytest.raises(TypeError, match=r"vocab_tile must be an integer, got 2\.5"):
        Tiles(vocab_tile=2.5)
    assert Tiles(np.int64(3), jnp.int32(5)) == Tiles(3, 5)
    for budget in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"memory_mb must be above 0, got {float(budget)}"):
            Tiles(memory_mb=budget)
    with pytest.raises(TypeError, match="memory_mb must be a number known at trace time, got '25'"):
        Tiles(memory_mb="25")
    with pytest.raises(ValueError, match="memory_mb must come without token_tile"):
        Tiles(64, memory_mb=25)
    assert Tiles(memory_mb=np.float32(25)) == Tiles(memory_mb=25)


def test_a_table_in_the_other_layout_is_named():
    turned = {"hidden": ones((4, 10)), "weight": ones((10, 3)), "labels": on_device(np.arange(4))}
    with pytest.raises(ValueError, match="features_first=True for"):
        linear_softmax_cross_entropy(**turned)
    with pytest.raises(ValueError, match="or leave out features_first"):
        linear_softmax_cross_entropy(**{**turned, "hidden": ones((4, 3))}, features_first=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing must be a number .* got '0.1'"),
        ({"label_smoothing": True}, TypeError, "label_smoothing must be a number .* got True"),
        ({"z_loss": float("nan")}, ValueError, "z_loss must be at least 0, got nan"),
        ({"temperature": "warm"}, TypeError, "temperature must be a number .* got 'warm'"),
        ({"temperature": ones((4, 1))}, ValueError, r"temperature must be one .* \(4, 1\)"),
        ({"temperature": 1j}, TypeError, "temperature must be real, got dtype complex64"),
        (
            {"token_weights": ones(4, complex)},
            TypeError,
            "token_weights must be numbers, got .*complex64",
        ),
        ({"ignore_index": -100.0}, TypeError, "ignore_index must be an integer, got -100.0"),
        ({"hidden": ones((4, 0)), "weight": ones((10, 0))}, ValueError, r"weight must be"),
    ],
)
def test_types_and_values_that_are_none_of_the_exact_loss(options, error, message):
    with pytest.raises(error, match=message):
        exact(**options)


def test_shapes_are_checked_while_tracing():
    with pytest.raises(ValueError, match="features"):
        jax.eval_shape(exact, hidden=jax.ShapeDtypeStruct((4, 5), jnp.float32))


def test_a_traced_label_out_of_range_gives_nan():
    @jax.jit
    def found(hidden, labels):
        gradient = jax.grad(lambda hidden: exact(hidden=hidden, labels=labels))(hidden)
        return exact(labels=labels, reduction="none"), gradient

    for label in (-1, 10, 2**31 - 1):
        losses, gradient = found(GOOD["hidden"], np.array([0, label, 2, 3]))
        assert np.isnan(losses).tolist() == [False, True, False, False]
        assert np.isnan(gradient[1]).all()


def test_nan_hidden_propagates():
    losses = exact(hidden=GOOD["hidden"].at[2, 0].set(jnp.nan), reduction="none")
    assert np.isnan(losses).tolist() == [False, False, True, False]


def test_samplers_refuse():
    labels, key = jnp.arange(4), jax.random.key(0)
    with pytest.raises(ValueError, match=r"num_sampled must be at most 10.*got 11"):
        draw_samples(LogUniform(10), key, 11, labels)
    with pytest.raises(ValueError, match="num_sampled must be at least 1, got 0"):
        draw_samples(LogUniform(10), key, 0, labels)
    with pytest.raises(ValueError, match="num_sampled must be at most 2"):
        draw_samples(Unigram.from_counts([0, 3, 0, 1]), key, 3, labels)
    with pytest.raises(TypeError, match="labels must be integer"):
        draw_samples(LogUniform(10), key, 3, ones(4))
    for sampler in (Uniform, LogUniform, LearnedUnigram.create):
        with pytest.raises(ValueError, match="vocab_size must lie in"):
            sampler(2**31)
        with pytest.raises(ValueError, match="vocab_size must lie in"):
            sampler(0)
    for counts in ([], [[1]], [-1, 2], [0, 0], [np.nan]):
        with pytest.raises(ValueError, match="counts must be"):
            Unigram.from_counts(counts)
    with pytest.raises(ValueError, match="log_probability must have the shape"):
        in_batch_samples(labels, ones(3))


def test_samples_must_fit():
    samples = SAMPLES
    with pytest.raises(TypeError, match=r"samples\.ids must be integer"):
        sampled(nce_loss, samples=samples._replace(ids=samples.ids.astype(float)))
    with pytest.raises(ValueError, match=r"samples.ids must be \[num_sampled\] or"):
        sampled(nce_loss, samples=samples._replace(ids=jnp.zeros((3, 5), int)))
    with pytest.raises(ValueError, match=r"samples\.labels_log_expected_count must have shape"):
        sampled(nce_loss, samples=samples._replace(labels_log_expected_count=ones(3)))


def test_other_kernels_refuse():
    with pytest.raises(ValueError, match=r"k must lie in \[1, num_classes\] = \[1, 10\], got 11"):
        linear_top_k(GOOD["hidden"], GOOD["weight"], 11)
    with pytest.raises(ValueError, match="tables must share their first axis"):
        gather_rows((ones((3, 2)), ones(4)), jnp.arange(2))
    with pytest.raises(TypeError, match="ids must be integer"):
        gather_rows(ones((3, 2)), ones(2))
    with pytest.raises(ValueError, match="tables must hold at least one row"):
        gather_rows(ones((0, 2)), jnp.zeros(1, int))
    square = ones((4, 3))
    with pytest.raises(ValueError, match="hidden and items must be"):
        in_batch_softmax_cross_entropy(square, ones((5, 3)), jnp.arange(4))
    with pytest.raises(TypeError, match="labels must be integer"):
        in_batch_softmax_cross_entropy(square, square, ones(4))


def test_checked_variants_raise_under_jit():
    exact = jax.jit(checked_loss(linear_softmax_cross_entropy))
    sampled = jax.jit(checked_loss(sampled_softmax_cross_entropy))
    for change, message in (
        ({"labels": jnp.array([0, 1, 2, 10])}, r"labels must lie in \[0, 10\), got 10"),
        ({"hidden": GOOD["hidden"].at[1, 1].set(jnp.nan)}, "hidden must be finite"),
    ):
        arrays = {**GOOD, **change}
        for error, _ in (exact(**arrays), sampled(**arrays, samples=SAMPLES)):
            with pytest.raises(checkify.JaxRuntimeError, match=message):
                error.throw()


def test_checked_passes_good_input_and_ignored_labels():
    labels = GOOD["labels"].at[0].set(-1)
    loss = checked_loss(lambda *a, **k: linear_softmax_cross_entropy(*a, **k))
    error, value = loss(GOOD["hidden"], GOOD["weight"], labels, bias=GOOD["bias"], ignore_index=-1)
    error.throw()
    np.testing.assert_allclose(value, np.log(10), rtol=1e-6)


def test_checked_leaves_shapes_to_the_loss():
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\)"):
        jax.jit(checked_loss(linear_softmax_cross_entropy))(**{**GOOD, "labels": jnp.arange(3)})
