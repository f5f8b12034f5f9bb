"""Losses over the true classes and a few sampled ones, in place of the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels import dispatch
from jaxnets.kernels.losses import Reduction, check_ignore_index, reduce_losses, vocab_size_of
from jaxnets.kernels.losses_over_rows import losses_over_rows, samples_rows
from jaxnets.kernels.meshes import WHOLE, eager_gradients
from jaxnets.kernels.numerics import accumulator_dtype, result_dtype
from jaxnets.kernels.pallas.contract import PallasOptions
from jaxnets.kernels.sampled_softmax.candidates import (
    Options,
    candidates,
    check,
    fused_losses,
    leave_out,
)
from jaxnets.kernels.sampled_softmax.sharded import split_losses
from jaxnets.kernels.sampled_softmax.xla import candidate_logistic, candidate_softmax
from jaxnets.kernels.samplers.samples import Samples
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


def _shared_samples(backend: dispatch.Obstacle) -> dispatch.Obstacle:
    def obstacle(where: dispatch.Target, dtype: Any, sizes: Mapping[str, Any]) -> str | None:
        if sizes["per_token"]:
            return "the kernel shares its samples between all tokens, got samples for each token"
        return backend(where, dtype, sizes)

    return obstacle


OPERATION = dispatch.register(
    dispatch.Operation(
        "sampled_softmax_cross_entropy",
        ("tokens", "features", "num_sampled", "per_token"),
        {
            "gathered": dispatch.anywhere,
            "pallas": _shared_samples(dispatch.pallas_obstacle),
            "mosaic_gpu": _shared_samples(dispatch.mosaic_gpu_obstacle),
        },
        {"per_token": False},
    )
)


@jax.named_scope("sampled_softmax_cross_entropy")
def sampled_softmax_cross_entropy(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "..."] | Sequence,
    samples: Samples | tuple,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    subtract_log_q: bool = True,
    remove_accidental_hits: bool = True,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    reduction: Reduction = "mean",
    features_first: bool = False,
    sharding: VocabSharding | None = None,
    implementation: Literal["gathered", "pallas", "mosaic_gpu"] | None = None,
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
      weight: [vocab, features], float; or, by ``features_first``, [features, vocab]. Only the rows
        of labels and samples are read.
      labels: [...], integers in [0, vocab_size), or [..., num_true] where a token has several true
        classes, each with a share of 1 / num_true.
      samples: from :func:`jaxnets.kernels.draw_samples` with these labels, or your own by
        :meth:`jaxnets.kernels.Samples.from_candidates`: ids [num_sampled] shared by all tokens, or
        [..., num_sampled], each token's own (then num_sampled rows are read for each token).
      bias: [vocab] or None.
      subtract_log_q: correct the logits for how often a class is drawn; without it the loss favors
        rarely drawn classes. A true class that is never drawn (log Q is -infinity) is not
        corrected.
      remove_accidental_hits: leave a sample out for the tokens whose true class it is.
      token_weights: [...], a factor for each token; 0 (or False) leaves the token out, whatever its
        hidden state, labels and own samples are.
      ignore_index: a label that is no class, for example -1 for padding: the token's other true
        classes share its target, and without any the token is left out.
      reduction: "mean" (by weight), "sum" or "none" (one loss a token).
      features_first: ``weight`` is [features, vocab], as the kernel of ``nnx.Linear`` is.
      sharding: over which axes of a mesh classes and tokens are split; None: neither. ``weight``
        and ``bias`` are split over the first and the batch's first axis over the second, and so are
        their gradients; samples that all tokens share are drawn with one key on all devices. Value
        and gradients are those of one device up to rounding.
      implementation: "gathered", on XLA, runs anywhere; "pallas" needs a GPU or TPU, "mosaic_gpu"
        a Hopper or Blackwell GPU and 16 bits: both need samples that all tokens share, and take no
        sharding. None is "gathered", unless the tuner measured another to be faster.

    Returns:
      The loss, a scalar or [...] for "none", in float32 (float64 for float64 input); 0 for no
      tokens at all.

    Raises:
      TypeError: float labels or samples, or integer hidden, weight or bias.
      ValueError: shapes that do not fit, or that the sharding does not divide, an implementation
        that cannot run here, or a label or sample out of range where its value is known at trace
        time. Under ``jit`` one out of range gives NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import LogUniform, draw_samples
      >>> hidden, weight = jnp.ones((2, 4)), jnp.zeros((100, 4))
      >>> labels = jnp.array([3, 5])
      >>> samples = draw_samples(LogUniform(100), jax.random.key(0), 100, labels)
      >>> loss = sampled_softmax_cross_entropy(hidden, weight, labels, samples)
      >>> bool(jnp.isclose(loss, jnp.log(100.0)))
      True
    """
    ignore_index = check_ignore_index(ignore_index)
    arrays = check(
        hidden, weight, bias, labels, samples, token_weights, reduction, ignore_index,
        features_first,
    )  # fmt: skip
    sharding = _checked(sharding, arrays, features_first)
    options = Options(bool(subtract_log_q), bool(remove_accidental_hits), bool(features_first))
    *batch, features = arrays[0].shape
    ids = arrays[4].ids
    sizes = {
        "tokens": math.prod(batch),
        "features": features,
        "num_sampled": ids.shape[-1],
        "per_token": ids.ndim > 1,
    }
    if sharding.is_split and implementation in dispatch.PALLAS:
        raise ValueError(f'implementation="{implementation}" cannot run here: it takes no sharding')
    asked = "gathered" if sharding.is_split else implementation
    choice = dispatch.choose(OPERATION, result_dtype(*arrays[:2]), sizes, asked)
    # The grid of a kernel is not empty.
    call = PallasOptions.of(choice) if math.prod(batch) and ids.size else None
    return _loss(candidate_softmax, call, sharding, options, ignore_index, reduction, *arrays)


def _checked(sharding: Any, arrays: tuple, features_first: bool) -> VocabSharding:
    hidden, weight, *_ = arrays
    sharding = as_sharding(sharding)
    sharding.check(vocab_size_of(weight, features_first), hidden.shape[:-1])
    return sharding


@jax.named_scope("nce_loss")
def nce_loss(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "..."] | Sequence,
    samples: Samples | tuple,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    subtract_log_q: bool = True,
    remove_accidental_hits: bool = False,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    reduction: Reduction = "mean",
    features_first: bool = False,
    sharding: VocabSharding | None = None,
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
      >>> from jaxnets.kernels import Uniform, draw_samples
      >>> labels = jnp.array([3, 5])
      >>> samples = draw_samples(Uniform(8), jax.random.key(0), 8, labels)
      >>> loss = nce_loss(jnp.ones((2, 4)), jnp.zeros((8, 4)), labels, samples)
      >>> bool(jnp.isclose(loss, 9 * jnp.log(2.0)))
      True
    """
    return sampled_loss(
        candidate_logistic,
        Options(bool(subtract_log_q), bool(remove_accidental_hits), bool(features_first)), sharding,
        hidden, weight, bias, labels, samples, token_weights, reduction, ignore_index,
    )  # fmt: skip


@jax.named_scope("negative_sampling_loss")
def negative_sampling_loss(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "..."] | Sequence,
    samples: Samples | tuple,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    remove_accidental_hits: bool = False,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    reduction: Reduction = "mean",
    features_first: bool = False,
    sharding: VocabSharding | None = None,
) -> Float[Array, "..."]:
    r"""Negative sampling: :func:`nce_loss` with the log-counts left out.

    .. math:: \text{loss} = -\log \sigma(o_y) - \sum_{k \in S} \log \sigma(-o_k)

    for one true class y and :math:`o_k = w_k \cdot h + b_k` (Mikolov et al. 2013, "Distributed
    Representations of Words and Phrases", equation 4). It learns good vectors, not probabilities:
    its logits are not log-probabilities, even up to a constant.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import Uniform, draw_samples
      >>> labels = jnp.array([3, 5])
      >>> samples = draw_samples(Uniform(50), jax.random.key(0), 5, labels, unique=False)
      >>> loss = negative_sampling_loss(jnp.ones((2, 4)), jnp.zeros((50, 4)), labels, samples)
      >>> bool(jnp.isclose(loss, 6 * jnp.log(2.0)))
      True
    """
    return sampled_loss(
        candidate_logistic,
        Options(False, bool(remove_accidental_hits), bool(features_first)), sharding,
        hidden, weight, bias, labels, samples, token_weights, reduction, ignore_index,
    )  # fmt: skip


def sampled_loss(
    loss: Callable,
    options: Options,
    sharding: Any,
    hidden: Any,
    weight: Any,
    bias: Any,
    labels: Any,
    samples: Any,
    token_weights: Any,
    reduction: str,
    ignore_index: Any,
) -> jax.Array:
    """The checks of a sampled loss that has one implementation, and the loss.

    ``loss``: a function of gathered rows, as those in ``xla.py``; the same object for the same
    arguments, as each has a program of its own.
    """
    ignore_index = check_ignore_index(ignore_index)
    arrays = check(
        hidden, weight, bias, labels, samples, token_weights, reduction, ignore_index,
        options.features_first,
    )  # fmt: skip
    sharding = _checked(sharding, arrays, options.features_first)
    return _loss(loss, None, sharding, options, ignore_index, reduction, *arrays)


@eager_gradients
@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
@losses_over_rows(
    hidden=0, weight=WHOLE, bias=WHOLE, labels=0, samples=samples_rows, token_weights=0
)
def _loss(
    loss: Callable,
    fused: PallasOptions | None,
    sharding: VocabSharding,
    options: Options,
    ignore_index: int | None,
    reduction: str,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
    token_weights: jax.Array | None,
) -> jax.Array:
    batch, dtype = hidden.shape[:-1], accumulator_dtype(hidden, weight)
    if sharding.is_split:
        if not labels.size:
            return jnp.zeros(batch if reduction == "none" else (), dtype)
        hidden, labels, token_weights = sharding.place_tokens(hidden, labels, token_weights)
    share, kept = leave_out(labels, token_weights, ignore_index, batch, dtype)
    arrays = hidden, weight, bias, labels, samples, share
    if sharding.is_split:
        losses = split_losses(sharding, options, loss, *arrays)
    elif fused is not None:
        losses = fused_losses(fused, options, *arrays)
    else:
        losses = loss(*candidates(options, weight.shape[options.vocab_axis], *arrays))
    return reduce_losses(losses.reshape(batch), kept, reduction)
