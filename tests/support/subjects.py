"""The public functions of the kernels, each as a function of float arrays to a tree of arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jaxnets.kernels import (
    SGD,
    CandidateQueue,
    GRUParameters,
    LearnedUnigram,
    LogUniform,
    LSTMParameters,
    Mixture,
    SparseRows,
    StreamingFrequency,
    Tiles,
    Uniform,
    Unigram,
    VocabSharding,
    add_rows,
    bpr_loss,
    bpr_max_loss,
    checked_loss,
    depthwise_conv,
    draw_samples,
    fold_batch_norm,
    gather_rows,
    gbce_loss,
    gru,
    hardest_samples,
    in_batch_samples,
    in_batch_softmax_cross_entropy,
    linear_divergence,
    linear_label_rank,
    linear_log_probs,
    linear_sigmoid_cross_entropy,
    linear_softmax_cross_entropy,
    linear_softmax_update,
    linear_top_k,
    lstm,
    mixed_samples,
    nce_loss,
    negative_sampling_loss,
    pointwise_conv,
    recurrent_layers,
    rows_from_dense,
    sampled_softmax_cross_entropy,
    scalable_cross_entropy,
    to_dense,
)
from tests.fixed_samples import fixed_samples
from tests.inputs import on_device

PLATFORMS = ("cpu", "gpu", "tpu")
VOCAB, FEATURES, TOKENS, HIDDEN, TIME = 48, 6, 8, 5, 11  # steps: more than are written out


class Subject(NamedTuple):
    """A function of float arrays (what is differentiated) to a tree of arrays.

    ``platforms``: the Pallas implementations need one to be compiled for. ``by_key``: its arrays
    choose a key and nothing else, so that one program draws for every dtype of them.
    """

    name: str
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    differentiable: bool = True
    platforms: tuple[str, ...] = PLATFORMS
    pallas: bool = False
    by_key: bool = False

    def arrays(self, dtype: Any, seed: int = 0) -> list[jax.Array]:
        """Random arrays of its shapes."""
        rng = np.random.default_rng(seed)
        drawn = [0.5 * rng.normal(size=shape) for shape in self.shapes]
        return [on_device(array.astype(jnp.dtype(dtype))) for array in drawn]


LABELS = on_device(np.arange(TOKENS) * 5 % VOCAB)
SAMPLES = fixed_samples(VOCAB, LABELS, np.arange(16) ** 2 % VOCAB)
LENGTHS = on_device(np.array([11, 0, 2, 1, 3, 11, 7, 1]))
_SOFTMAX = ((TOKENS, FEATURES), (VOCAB, FEATURES), (VOCAB,))
_LSTM = ((TOKENS, TIME, FEATURES), (FEATURES, 4 * HIDDEN), (HIDDEN, 4 * HIDDEN), (4 * HIDDEN,))
_CONV = ((TOKENS, 3, 4, FEATURES), (FEATURES, 7), (7,))


def _full(implementation, hidden, weight, bias):
    return linear_softmax_cross_entropy(
        hidden, weight, LABELS, bias=bias, tiles=Tiles(vocab_tile=20), implementation=implementation
    )


def _full_tokens(hidden, weight, bias):
    return linear_softmax_cross_entropy(hidden, weight, LABELS, bias=bias, reduction="none")


def _sampled(loss, hidden, weight, bias, **options):
    return loss(hidden, weight, LABELS, SAMPLES, bias=bias, **options)


def _lstm(implementation, inputs, *parameters):
    outputs, (c, h) = lstm(
        inputs, None, LSTMParameters(*parameters), lengths=LENGTHS, implementation=implementation
    )
    return outputs, c, h


def _gru(implementation, inputs, *parameters):
    return gru(
        inputs, None, GRUParameters(*parameters), lengths=LENGTHS, implementation=implementation
    )


def _layers(inputs, *parameters):
    """Two directions, and a layer on them: as wide as the inputs, so that it is traced once."""
    layer = LSTMParameters(*parameters)
    outputs, _ = recurrent_layers(inputs, None, [[layer, layer], [layer]])
    return outputs


def _conv(implementation, inputs, kernel, bias):
    return pointwise_conv(inputs, kernel, bias, activation="gelu", implementation=implementation)


def _rows(table):
    row_ids, rows, local_ids = gather_rows(table, LABELS)
    return add_rows(table, SparseRows(row_ids, 2 * rows)), rows[local_ids]


def _key(hidden):
    """All that depends on the input: what is tested is the rest."""
    return jax.random.fold_in(jax.random.key(0), (hidden * 0).sum().astype(jnp.int32))


@cache
def _samplers() -> dict[str, Any]:
    with jax.ensure_compile_time_eval():
        unigram = Unigram.from_counts(np.arange(VOCAB) + 1)
        learned = jax.jit(lambda labels: LearnedUnigram.create(VOCAB).update(labels))(LABELS)
        return {
            "Uniform": Uniform(VOCAB),
            "LogUniform": LogUniform(VOCAB),
            "Unigram": unigram,
            "LearnedUnigram": learned,
            "Mixture": Mixture.create([unigram, Uniform(VOCAB)], [3, 1]),
        }


def _draw(name, hidden):
    """With replacement, by each sampler's own draw; mixed samples are without."""
    return draw_samples(_samplers()[name], _key(hidden), 8, LABELS, unique=False)[1:3]


def _mixed(hidden):
    popularity = _samplers()["Unigram"]
    return mixed_samples(Uniform(VOCAB), _key(hidden), 8, LABELS, popularity)[1:3]


def _hardest(hidden, weight, bias):
    """The scores of those chosen: of equal ones another may be."""
    ids = hardest_samples(hidden, weight, LABELS, SAMPLES, 4, bias=bias, subtract_log_q=False).ids
    logits = hidden.astype(jnp.float32) @ weight.astype(jnp.float32).T + bias.astype(jnp.float32)
    return jnp.take_along_axis(logits, ids, 1)


def _queue(items):
    queue = CandidateQueue.create(TOKENS + 2, FEATURES)
    return queue.push(items, LABELS).push(2 * items, LABELS)


def _stream(hidden):
    ids = LABELS * (1 + (hidden[0, 0] > 0).astype(jnp.int32))
    return StreamingFrequency.create(64).update(ids).update(LABELS).log_expected_count(ids)


def _sharding(tokens=True):
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(AxisType.Auto,) * 2)
    return VocabSharding(mesh, "vocab", "data" if tokens else None)


def _sharded_rows(table):
    return gather_rows(table, LABELS, sharding=_sharding())[1]


_CHECKED = jax.jit(checked_loss(linear_softmax_cross_entropy))

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("linear_softmax_cross_entropy, tiled", partial(_full, "tiled"), _SOFTMAX),
        Subject("the same, a loss for each token", _full_tokens, _SOFTMAX),
        *(
            Subject(f"linear_softmax_cross_entropy, pallas {platform}", partial(_full, "pallas"),
                    _SOFTMAX, platforms=(platform,), pallas=True)
            for platform in ("gpu", "tpu")
        ),
        Subject("sampled_softmax_cross_entropy, gathered",
                partial(_sampled, sampled_softmax_cross_entropy, implementation="gathered"),
                _SOFTMAX),
        *(
            Subject(f"sampled_softmax_cross_entropy, pallas {platform}",
                    partial(_sampled, sampled_softmax_cross_entropy, implementation="pallas"),
                    _SOFTMAX, platforms=(platform,), pallas=True)
            for platform in ("gpu", "tpu")
        ),
        Subject("nce_loss", partial(_sampled, nce_loss), _SOFTMAX),
        Subject("negative_sampling_loss", partial(_sampled, negative_sampling_loss), _SOFTMAX),
        Subject("gbce_loss", partial(_sampled, gbce_loss), _SOFTMAX),
        Subject("bpr_loss", partial(_sampled, bpr_loss), _SOFTMAX),
        Subject("bpr_max_loss", partial(_sampled, bpr_max_loss), _SOFTMAX),
        Subject("scalable_cross_entropy",
                lambda h, w, b: scalable_cross_entropy(
                    h, w, LABELS, jax.random.key(0), bias=b, tokens_per_bucket=TOKENS),
                _SOFTMAX),
        Subject("in_batch_softmax_cross_entropy",
                lambda hidden, items: in_batch_softmax_cross_entropy(hidden, items, LABELS),
                (_SOFTMAX[0], _SOFTMAX[0])),
        Subject("linear_softmax_update",
                lambda h, w, b: linear_softmax_update(h, w, LABELS, SGD(0.5), bias=b)[:4],
                _SOFTMAX, False),
        Subject("in_batch_softmax_cross_entropy, symmetric",
                lambda hidden, items: in_batch_softmax_cross_entropy(
                    hidden, items, LABELS, symmetric=True, tiles=Tiles(3, 5)),
                (_SOFTMAX[0], _SOFTMAX[0])),
        Subject("linear_sigmoid_cross_entropy",
                lambda h, w, b: linear_sigmoid_cross_entropy(
                    h, w, jnp.stack([LABELS, LABELS // 2], 1), bias=b),
                _SOFTMAX),
        Subject("linear_log_probs", lambda h, w, b: linear_log_probs(h, w, LABELS, bias=b)[:3],
                _SOFTMAX),
        Subject("linear_divergence",
                lambda h, w, b: linear_divergence(
                    (h, w, b), (jnp.cos(h), jnp.sin(w)), kind="jsd", labels=LABELS),
                _SOFTMAX),
        Subject("linear_top_k", lambda h, w, b: linear_top_k(h, w, 3, bias=b)[0], _SOFTMAX, False),
        Subject("linear_label_rank",
                lambda h, w, b: linear_label_rank(h, w, LABELS, bias=b).above.astype(jnp.float32),
                _SOFTMAX, False),
        Subject("checked_loss",
                lambda h, w, b: _CHECKED(h, w, LABELS, bias=b)[1],
                _SOFTMAX, False),
        *(
            Subject(f"draw_samples, {name}", partial(_draw, name), _SOFTMAX[:1], False, by_key=True)
            for name in ("Uniform", "LogUniform", "Unigram", "LearnedUnigram", "Mixture")
        ),
        Subject("in_batch_samples",
                lambda h: in_batch_samples(LABELS, -jnp.abs(h[:, 0])).log_expected_count,
                _SOFTMAX[:1], False),
        Subject("hardest_samples", _hardest, _SOFTMAX, False),
        Subject("CandidateQueue", _queue, _SOFTMAX[:1], False),
        Subject("StreamingFrequency", jax.jit(_stream), _SOFTMAX[:1], False),
        Subject("mixed_samples", _mixed, _SOFTMAX[:1], False, by_key=True),
        Subject("gather_rows, add_rows", jax.jit(_rows), (_SOFTMAX[1],)),
        Subject("rows_from_dense, to_dense",
                jax.jit(lambda g: to_dense(rows_from_dense(g, VOCAB), VOCAB)),
                (_SOFTMAX[1],), False),
        Subject("lstm, scan", partial(_lstm, "scan"), _LSTM),
        Subject("lstm, reference", partial(_lstm, "reference"), _LSTM),
        *(
            Subject(f"lstm, pallas {platform}", partial(_lstm, "pallas"), _LSTM,
                    platforms=(platform,), pallas=True)
            for platform in ("gpu", "tpu")
        ),
        Subject("gru, scan", partial(_gru, "scan"),
                ((TOKENS, TIME, FEATURES), (FEATURES, 15), (5, 15), (15,), (15,))),
        Subject("gru, reference", partial(_gru, "reference"),
                ((TOKENS, TIME, FEATURES), (FEATURES, 15), (5, 15), (15,), (15,))),
        Subject("recurrent_layers", _layers,
                ((TOKENS, TIME, 2 * HIDDEN), (2 * HIDDEN, 4 * HIDDEN), *_LSTM[2:])),
        Subject("pointwise_conv, matmul", partial(_conv, "matmul"), _CONV),
        Subject("pointwise_conv, reference", partial(_conv, "reference"), _CONV),
        *(
            Subject(f"pointwise_conv, pallas {platform}", partial(_conv, "pallas"), _CONV,
                    platforms=(platform,), pallas=True)
            for platform in ("gpu", "tpu")
        ),
        Subject("depthwise_conv", lambda x, w: depthwise_conv(x, w),
                (_CONV[0], (3, 3, FEATURES))),
        Subject("fold_batch_norm",
                lambda k, b, m, v, s, o: fold_batch_norm(k, b, m, v * v + 0.5, s, o),
                (_CONV[1], *[(7,)] * 5)),
        Subject("linear_softmax_cross_entropy, sharding",
                lambda h, w, b: linear_softmax_cross_entropy(
                    h, w, LABELS, bias=b, sharding=_sharding()),
                _SOFTMAX),
        Subject("sampled_softmax_cross_entropy, sharding",
                lambda h, w, b: sampled_softmax_cross_entropy(
                    h, w, LABELS, SAMPLES, bias=b, sharding=_sharding()), _SOFTMAX),
        Subject("gather_rows, sharding", _sharded_rows, (_SOFTMAX[1],), False),
    )
}  # fmt: skip
