"""Losses over the true classes and a few sampled ones, in place of the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Num

from jaxnets.kernels import dispatch
from jaxnets.kernels.pallas.fused_matmul import Call
from jaxnets.kernels.softmax import arguments
from jaxnets.kernels.softmax.sampled_core import candidate_logits, candidate_softmax
from jaxnets.kernels.softmax.sampled_fused import sampled_log_sum_exp
from jaxnets.kernels.softmax.samplers import Samples
from jaxnets.kernels.softmax.tiles import accumulator_dtype


def _pallas_obstacle(where, dtype, sizes):
    if sizes["per_token"]:
        return "the kernel shares its samples between all tokens, got samples for each token"
    return dispatch.pallas_obstacle(where, dtype)


OPERATION = dispatch.register(
    dispatch.Operation(
        "sampled_softmax_cross_entropy",
        ("tokens", "features", "num_sampled", "per_token"),
        {"gathered": dispatch.anywhere, "pallas": _pallas_obstacle},
    )
)


def sampled_softmax_cross_entropy(
    hidden: Float[Array, "*batch features"],
    weight: Float[Array, "vocab features"],
    bias: Float[Array, " vocab"] | None,
    labels: Integer[Array, "..."],
    samples: Samples,
    *,
    subtract_log_q: bool = True,
    remove_accidental_hits: bool = True,
    weights: Num[Array, "*batch"] | None = None,
    reduction: str = "mean",
    implementation: str | None = None,
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy over the true classes and the sampled ones.

    .. math::
        o_k = w_k \cdot h + b_k - \log Q(k), \qquad
        \text{loss} = \log \sum_{k \in T \cup S} e^{o_k} - \frac{1}{|T|} \sum_{k \in T} o_k

    with true classes T, samples S and Q the expected count of a class among the samples (Jean et
    al. 2015, "On Using Very Large Target Vocabulary for Neural Machine Translation", section 3.2;
    Bengio and Senecal 2008). It tends to the full softmax as the samples grow. It is for training:
    evaluate with the exact loss, :func:`jaxnets.kernels.linear_softmax_cross_entropy`.

    Args:
      hidden: [..., features], float; bfloat16 and float16 are accumulated in float32.
      weight: [vocab, features], float; only the rows of labels and samples are read.
      bias: [vocab] or None.
      labels: [...], integers in [0, vocab), or [..., num_true] where a token has several true
        classes, each with a share of 1 / num_true.
      samples: from :func:`jaxnets.kernels.sample` with these labels: ids [num_sampled] shared by
        all tokens, or [..., num_sampled], each token's own (then num_sampled rows are read for each
        token).
      subtract_log_q: correct the logits for how often a class is drawn; without it the loss favours
        rarely drawn classes.
      remove_accidental_hits: leave a sample out for the tokens whose true class it is.
      weights: [...], a factor for each token; 0 (or False) leaves the token out.
      reduction: "mean" (by weight), "sum" or "none" (one loss a token).
      implementation: "gathered", on XLA, runs anywhere; "pallas" needs a GPU or TPU and samples
        that all tokens share. None is "gathered", unless the tuner measured "pallas" to be faster.

    Returns:
      The loss in float32 (float64 for float64 input): a scalar, or [...] for "none".

    Raises:
      TypeError: float labels or samples, or integer hidden, weight or bias.
      ValueError: shapes that do not fit, an empty batch, an implementation that cannot run here, or
        a label out of range where its value is known at trace time. Under ``jit`` a label out of
        range gives NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import LogUniform, sample
      >>> hidden, weight = jnp.ones((2, 4)), jnp.zeros((100, 4))
      >>> labels = jnp.array([3, 5])
      >>> samples = sample(LogUniform(100), jax.random.key(0), 100, labels)
      >>> loss = sampled_softmax_cross_entropy(hidden, weight, None, labels, samples)
      >>> bool(jnp.isclose(loss, jnp.log(100.0)))
      True
    """
    arrays = check(hidden, weight, bias, labels, samples, weights, reduction)
    sizes = {
        "tokens": hidden.size // hidden.shape[-1], "features": hidden.shape[-1],
        "num_sampled": samples.ids.shape[-1], "per_token": samples.ids.ndim > 1,
    }  # fmt: skip
    dtype = jnp.result_type(hidden, weight)
    choice = dispatch.choose(OPERATION, dtype, sizes, implementation)
    return _softmax(Call.of(choice), subtract_log_q, remove_accidental_hits, reduction, *arrays)


def nce_loss(
    hidden: Float[Array, "*batch features"],
    weight: Float[Array, "vocab features"],
    bias: Float[Array, " vocab"] | None,
    labels: Integer[Array, "..."],
    samples: Samples,
    *,
    subtract_log_q: bool = True,
    remove_accidental_hits: bool = False,
    weights: Num[Array, "*batch"] | None = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    r"""Noise-contrastive estimation: is a class the token's own, or noise?

    .. math::
        \text{loss} = \sum_{k \in T} \big(\log(1 + e^{o_k}) - \tfrac{1}{|T|} o_k\big)
        + \sum_{k \in S} \log(1 + e^{o_k}), \qquad o_k = w_k \cdot h + b_k - \log Q(k)

    (Gutmann and Hyvarinen 2010; Mnih and Teh 2012). Arguments, result and errors are those of
    :func:`sampled_softmax_cross_entropy`, but accidental hits are kept unless asked for, as the
    estimator assumes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import Uniform, sample
      >>> labels = jnp.array([3, 5])
      >>> samples = sample(Uniform(8), jax.random.key(0), 8, labels)
      >>> loss = nce_loss(jnp.ones((2, 4)), jnp.zeros((8, 4)), None, labels, samples)
      >>> bool(jnp.isclose(loss, 9 * jnp.log(2.0)))
      True
    """
    arrays = check(hidden, weight, bias, labels, samples, weights, reduction)
    return _logistic(subtract_log_q, remove_accidental_hits, reduction, *arrays)


@jax.named_scope("negative_sampling_loss")
def negative_sampling_loss(
    hidden: Float[Array, "*batch features"],
    weight: Float[Array, "vocab features"],
    bias: Float[Array, " vocab"] | None,
    labels: Integer[Array, "..."],
    samples: Samples,
    *,
    remove_accidental_hits: bool = False,
    weights: Num[Array, "*batch"] | None = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    r"""Negative sampling: :func:`nce_loss` with the log-counts left out.

    .. math:: \text{loss} = -\log \sigma(o_y) - \sum_{k \in S} \log \sigma(-o_k)

    for one true class y and :math:`o_k = w_k \cdot h + b_k` (Mikolov et al. 2013, "Distributed
    Representations of Words and Phrases", equation 4). It learns good vectors, not probabilities:
    its logits are not log-probabilities, even up to a constant.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import Uniform, sample
      >>> labels = jnp.array([3, 5])
      >>> samples = sample(Uniform(50), jax.random.key(0), 5, labels, unique=False)
      >>> loss = negative_sampling_loss(jnp.ones((2, 4)), jnp.zeros((50, 4)), None, labels, samples)
      >>> bool(jnp.isclose(loss, 6 * jnp.log(2.0)))
      True
    """
    arrays = check(hidden, weight, bias, labels, samples, weights, reduction)
    return _logistic(False, remove_accidental_hits, reduction, *arrays)


def in_batch_softmax_cross_entropy(
    hidden: Float[Array, "batch features"],
    items: Float[Array, "batch features"],
    labels: Integer[Array, " batch"],
    log_probability: Float[Array, " batch"] | None = None,
    *,
    weights: Num[Array, " batch"] | None = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    r"""Softmax of each query over the batch's own items, corrected for how common they are.

    .. math::
        \text{loss}_i = \log \sum_{j : j = i \text{ or } y_j \ne y_i} e^{s_{ij}} - s_{ii},
        \qquad s_{ij} = h_i \cdot v_j - \log q_j

    (Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", equations 3 to 6). Another row with the same item is no negative.

    Args:
      hidden: [batch, features], float: the queries.
      items: [batch, features], float: the item of each query.
      labels: [batch], integer ids of the items.
      log_probability: [batch]: log of each item's share of the data; None: no correction.
      weights: [batch], a factor for each query; 0 (or False) leaves out the query, not its item.
      reduction: "mean" (by weight), "sum" or "none".

    Returns:
      The loss in float32: a scalar, or [batch] for "none".

    Raises:
      TypeError: float labels.
      ValueError: shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> vectors = 10 * jnp.eye(3)
      >>> loss = in_batch_softmax_cross_entropy(vectors, vectors, jnp.array([4, 7, 9]))
      >>> bool(loss < 1e-6)
      True
    """
    arguments.check_integers("labels", labels)
    arguments.check_reduction(reduction)
    if hidden.ndim != 2 or items.shape != hidden.shape or not hidden.size:
        raise ValueError(
            "hidden and items must be [batch, features] alike and not empty, "
            f"got {hidden.shape} and {items.shape}"
        )
    for name, array in (("labels", labels), ("log_probability", log_probability)):
        if array is not None and array.shape != hidden.shape[:1]:
            raise ValueError(f"{name} must be [batch] = {hidden.shape[:1]}, got {array.shape}")
    arguments.check_weights(weights, hidden.shape[:1])
    return _in_batch(reduction, hidden, items, labels, log_probability, weights)


@partial(jax.jit, static_argnums=0)
@jax.named_scope("in_batch_softmax_cross_entropy")
def _in_batch(reduction, hidden, items, labels, log_probability, weights):
    dtype = accumulator_dtype(hidden, items)
    if log_probability is None:
        log_probability = jnp.zeros(labels.shape, dtype)
    offset = -log_probability.astype(dtype)
    hits = labels[:, None] == labels
    losses = candidate_softmax(hidden, items[:, None], offset[:, None], items, offset, hits)
    return arguments.reduce_losses(losses, weights, reduction)


def check(hidden, weight, bias, labels, samples, weights, reduction):
    """Raise unless arrays, samples and reduction fit; returns them as arrays."""
    hidden, weight = jnp.asarray(hidden), jnp.asarray(weight)
    arguments.check_projection(hidden, weight, bias)
    batch = hidden.shape[:-1]
    several = labels.ndim == hidden.ndim and labels.shape[:-1] == batch and labels.shape[-1] > 0
    arguments.check_labels(labels, labels.shape if several else batch, weight.shape[0])
    arguments.check_integers("samples.ids", samples.ids)
    if samples.ids.ndim < 1 or samples.ids.shape[:-1] not in ((), batch):
        raise ValueError(
            "samples.ids must be [num_sampled] or [..., num_sampled] with hidden's batch "
            f"{batch}, got {samples.ids.shape}"
        )
    for name, ids in (("log_expected_count", samples.ids), ("labels_log_expected_count", labels)):
        shape = getattr(samples, name).shape
        if shape != ids.shape:
            raise ValueError(f"samples.{name} must have shape {ids.shape}, got {shape}")
    arguments.check_weights(weights, batch)
    arguments.check_reduction(reduction)
    return hidden, weight, bias, jnp.asarray(labels), samples, weights


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@jax.named_scope("sampled_softmax_cross_entropy")
def _softmax(fused, subtract, remove, reduction, hidden, weight, bias, labels, samples, weights):
    if fused is None:
        losses = candidate_softmax(
            *candidates(subtract, remove, weight.shape[0], hidden, weight, bias, labels, samples)
        )
    else:
        losses = _fused(fused, subtract, remove, hidden, weight, bias, labels, samples)
    return arguments.reduce_losses(losses.reshape(hidden.shape[:-1]), weights, reduction)


@partial(jax.jit, static_argnums=(0, 1, 2))
@jax.named_scope("nce_loss")
def _logistic(subtract, remove, reduction, hidden, weight, bias, labels, samples, weights):
    flat = candidates(subtract, remove, weight.shape[0], hidden, weight, bias, labels, samples)
    true, sampled = candidate_logits(*flat)
    losses = (jax.nn.softplus(true) - true / true.shape[1]).sum(1) + jax.nn.softplus(sampled).sum(1)
    return arguments.reduce_losses(losses.reshape(hidden.shape[:-1]), weights, reduction)


def read_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """``table[ids]``, NaN where an id is out of range."""
    return table.at[ids].get(mode="fill", fill_value=jnp.nan)


def candidates(
    subtract, remove, vocab: int, hidden, weight, bias, labels, samples, read: Callable = read_rows
):
    """Gathered and flattened: what :mod:`sampled_core` takes.

    ``read(table, ids)`` reads weight and bias, which may be parts of tables of ``vocab`` classes.
    """
    hidden, labels, ids = _flat(vocab, hidden, labels, samples)

    def gather(ids, log_count):
        return read(weight, ids), _offset(subtract, weight, bias, ids, log_count, read)

    true = gather(labels, samples.labels_log_expected_count)
    sampled = gather(ids, samples.log_expected_count)
    hits = None
    if remove:
        hits = (labels[:, :, None] == (ids if ids.ndim == 1 else ids[:, None, :])).any(1)
    return hidden, *true, *sampled, hits


def _fused(call: Call, subtract, remove, hidden, weight, bias, labels, samples):
    """The losses [tokens] of :func:`candidate_softmax`, by the kernel of ``sampled_fused.py``."""
    vocab, dtype = weight.shape[0], accumulator_dtype(hidden, weight)
    hidden, labels, ids = _flat(vocab, hidden, labels, samples)
    offset = _offset(subtract, weight, bias, ids, samples.log_expected_count)
    inside = (ids >= 0) & (ids < vocab)
    offset, ids = jnp.where(inside, offset, jnp.nan), jnp.where(inside, ids, 0)
    sampled = sampled_log_sum_exp(
        call, hidden, weight, ids, offset, labels if remove else labels[:, :0]
    )
    rows = read_rows(weight, labels).astype(dtype)
    true = (hidden.astype(dtype)[:, None] * rows).sum(2)
    true += _offset(subtract, weight, bias, labels, samples.labels_log_expected_count)
    return jnp.logaddexp(sampled, jax.nn.logsumexp(true, 1)) - true.mean(1)


def _flat(vocab: int, hidden, labels, samples):
    """``hidden [tokens, features]``, ``labels [tokens, num_true]``, ids [(tokens,) num_sampled]."""
    batch = hidden.shape[:-1]
    hidden = hidden.reshape(-1, hidden.shape[-1])
    tokens = hidden.shape[0]
    num_true = labels.shape[-1] if labels.ndim > len(batch) else 1
    labels = arguments.safe_ids(labels.reshape(tokens, num_true), vocab)
    ids = samples.ids.astype(jnp.int32)
    return hidden, labels, ids if ids.ndim == 1 else ids.reshape(tokens, -1)


def _offset(subtract, weight, bias, ids, log_count, read: Callable = read_rows):
    """The bias less the log-count, of the shape of ``ids``."""
    dtype = accumulator_dtype(weight)
    offset = jnp.zeros(ids.shape, dtype)
    if bias is not None:
        offset = read(bias, ids).astype(dtype)
    if subtract:
        offset = offset - jax.lax.stop_gradient(log_count.reshape(ids.shape)).astype(dtype)
    return offset
