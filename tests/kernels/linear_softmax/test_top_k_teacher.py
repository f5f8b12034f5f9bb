"""The forward KL from a teacher's best classes, against whole logits in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxnets.kernels import (
    Head,
    Tiles,
    TopKTeacher,
    VocabSharding,
    linear_divergence,
)
from tests.exact_loss import exact_divergence, exact_loss, exact_top_k_divergence
from tests.kernels.linear_softmax.test_log_probs import SHAPES, a_loss_a_token, temporaries

BATCH, FEATURES, VOCAB, K = (2, 5), 4, 24, 6
RANDOM = np.random.default_rng(0)
STUDENT = (
    RANDOM.normal(size=(*BATCH, FEATURES)),
    RANDOM.normal(size=(VOCAB, FEATURES)),
    RANDOM.normal(size=VOCAB),
)
LOGITS = RANDOM.normal(size=(*BATCH, VOCAB))
P = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
IDS = np.argsort(-P, -1)[..., :K]
LOG_P = np.log(np.take_along_axis(P, IDS, -1))
REST = 1 - np.exp(LOG_P).sum(-1)
TILES = Tiles(vocab_tile=7)  # the last one is moved back
WAVES = np.cos(np.arange(10.0)).reshape(BATCH)


@pytest.mark.parametrize(
    ("rest", "features_first"),
    [
        pytest.param(None, False, id="missing"),
        pytest.param(0.7 * REST, True, id="less", marks=pytest.mark.smoke),
        pytest.param(0 * REST, False, id="none"),
    ],
)
def test_value_and_gradients(x64, rest, features_first):
    hidden, weight, bias = STUDENT
    out = np.setdiff1d(np.arange(VOCAB), IDS)[:1]
    bias = bias.copy()
    bias[out] = -np.inf

    def ours(hidden, weight, bias):
        head = Head(hidden, weight.T if features_first else weight, bias, features_first)
        losses = linear_divergence(
            head, TopKTeacher(IDS, LOG_P, rest), temperature=1.7, reduction="none", tiles=TILES
        )
        return (losses * WAVES).sum()

    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(hidden, weight, bias)
    mass = REST if rest is None else rest
    losses, backward = exact_top_k_divergence((hidden, weight, bias), IDS, LOG_P, mass, 1.7)
    wanted = (losses * WAVES).sum(), *backward(WAVES)
    for a, b in zip((value, *gradients), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_all_classes_on_record_are_the_whole_divergence(x64):
    """k = V, of a teacher that is a head; and a teacher of one class is the cross-entropy."""
    hidden, weight, bias = STUDENT
    teacher = np.flip(weight, 1).copy()
    logits = hidden @ teacher.T
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = np.broadcast_to(np.arange(VOCAB), log_p.shape)
    got = linear_divergence(STUDENT, TopKTeacher(ids, log_p))
    losses, _ = exact_divergence("forward", STUDENT, (hidden, teacher, np.zeros(VOCAB)))
    np.testing.assert_allclose(got, losses.mean(), rtol=1e-12)
    one = TopKTeacher(IDS[..., :1], np.zeros((*BATCH, 1)))
    losses, _, _ = exact_loss(hidden, weight, IDS[..., 0], bias)
    np.testing.assert_allclose(linear_divergence(STUDENT, one), losses.mean(), rtol=1e-12)


def float32(*arrays):
    return tuple(np.asarray(a, np.float32) for a in arrays)


def test_padding_and_weight_0_leave_no_trace():
    hidden, weight, bias = map(np.array, float32(*STUDENT))
    ids, log_p = IDS.copy(), np.asarray(LOG_P, np.float32)
    ids[0, 1], log_p[0, 1] = 99, np.nan
    hidden[0, 1] = np.nan
    weights = np.ones(BATCH, bool)
    weights[0, 1] = False
    padded = np.pad(ids, [(0, 0), (0, 0), (0, 2)], constant_values=-1).astype(np.int16)
    filled = np.pad(log_p, [(0, 0), (0, 0), (0, 2)], constant_values=np.nan)

    @jax.jit
    def gradient(hidden, weight, bias, ids, log_p):
        def loss(hidden, weight, bias, log_p):
            teacher = TopKTeacher(ids, log_p)
            return linear_divergence((hidden, weight, bias), teacher, token_weights=weights)

        return jax.value_and_grad(loss, (0, 1, 2, 3))(hidden, weight, bias, log_p)

    value, gradients = gradient(hidden, weight, bias, padded, filled)
    losses, _ = exact_top_k_divergence(STUDENT, IDS, LOG_P, REST)
    np.testing.assert_allclose(value, losses[weights].mean(), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)
    gradients = [np.asarray(g) for g in gradients]
    assert not gradients[0][0, 1].any()
    assert not gradients[3].any()
    eager = linear_divergence(
        (hidden, weight, bias), TopKTeacher(ids, log_p), token_weights=weights
    )
    np.testing.assert_allclose(eager, value, rtol=1e-6)
    nothing = TopKTeacher(ids[:0], log_p[:0])
    assert linear_divergence((hidden[:0], weight, bias), nothing) == 0

    padded[1, 2, 0] = VOCAB
    assert np.isnan(gradient(hidden, weight, bias, padded, filled)[0])


FEW = 8 * float(jnp.finfo(jnp.bfloat16).eps)


@pytest.mark.parametrize(
    ("kind", "options", "rtol", "atol"),
    [
        (AxisType.Auto, {"tiles": Tiles(vocab_tile=4)}, 1e-4, 1e-6),
        (AxisType.Explicit, {"compute_dtype": "bfloat16"}, FEW, 0.02),
    ],
)
def test_over_devices_and_in_few_bits(kind, options, rtol, atol):
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(kind, kind))
    sharding = VocabSharding(mesh, "vocab", "data")
    teacher = TopKTeacher(IDS, *float32(LOG_P, REST))
    labels, (each,) = IDS[..., 0], float32(1.5 + WAVES)

    def loss(*student):
        return sum(
            linear_divergence(
                student, teacher, labels=labels, ignore_index=3, temperature=each,
                sharding=sharding, **options,
            )
        )  # fmt: skip

    got = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*float32(*STUDENT))
    share = (labels != 3) / (labels != 3).sum()
    losses, _, of_losses = exact_loss(*STUDENT[:2], labels, STUDENT[2])
    divergences, of_divergences = exact_top_k_divergence(STUDENT, IDS, LOG_P, REST, each)
    both = zip(of_losses(share), of_divergences(share), strict=False)
    wanted = ((losses + divergences) * share).sum(), *(a + b for a, b in both)
    for a, b in zip(jax.tree.leaves(got), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_memory_is_that_of_a_loss_a_token():
    """But for two tiles more: what is on record, scattered into one, and its gradient."""
    record = [jax.ShapeDtypeStruct((2048, 20), dtype) for dtype in ("int32", "float32")]
    ours = temporaries(
        lambda h, w, ids, p: linear_divergence((h, w), TopKTeacher(ids, p)), *SHAPES[:2], *record
    )
    assert ours < temporaries(a_loss_a_token, *SHAPES) + 2 * 4 * 512 * 1024


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        ((IDS[0], LOG_P), {}, r"teacher.ids must be \[..., k\] for the student's tokens \(2, 5\)"),
        ((IDS, LOG_P[..., 1:]), {}, "teacher.log_probs must have the shape of teacher.ids"),
        ((IDS, LOG_P, REST[0]), {}, r"teacher.rest must have shape \(2, 5\), got \(5,\)"),
        ((IDS, IDS), {}, "teacher.log_probs must be floating point"),
        ((LOG_P, LOG_P), {}, "teacher.ids must be integer class ids"),
        ((IDS + VOCAB, LOG_P), {}, r"teacher.ids must lie in \[-1, 24\)"),
        ((IDS, np.exp(LOG_P)), {}, r"teacher.log_probs must lie in \[-inf, 0\]"),
        ((IDS, LOG_P, -REST), {}, r"teacher.rest must lie in \[0, 1\]"),
        ((IDS, LOG_P), {"kind": "jsd"}, "kind must be 'forward' with a TopKTeacher, got 'jsd'"),
    ],
)
def test_bad_input(users_checks, teacher, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        linear_divergence(STUDENT, TopKTeacher(*teacher), **options)
