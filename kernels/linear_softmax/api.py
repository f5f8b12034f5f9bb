"""The exact softmax cross-entropy of an output projection, its logits never whole in memory.

The public function and its equation are here; the gradient is computed in one of two ways.

- ``xla_one_pass.py``, for a scalar loss: loss and gradient together, three matmuls, each logit
  computed once.
- ``per_token.py``, where a loss a token or the log-sum-exp is asked for: a token's cotangent comes
  only with the backward pass, which computes the logits again, tile by tile: four matmuls. Its
  engine is ``xla_two_pass.py`` on XLA or ``pallas.py`` on Pallas, which always goes this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, SupportsFloat, SupportsIndex, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels import dispatch
from jaxnets.kernels.linear_softmax.checks import (
    check_compute_dtype,
    check_gradient_filter,
    check_num_classes,
    check_options,
    check_precision,
    check_temperature,
    is_one_pass,
    known_as_kept,
    only_tiled,
    sizes_of,
)
from jaxnets.kernels.linear_softmax.class_weights import check_class_weights, weights_by_class
from jaxnets.kernels.linear_softmax.labels import Labels, check_soft_labels, soft_labels
from jaxnets.kernels.linear_softmax.pallas import FusedEngine
from jaxnets.kernels.linear_softmax.per_token import Engine, per_token
from jaxnets.kernels.linear_softmax.projection import (
    factors_by_reduction,
    prepared,
    temperature_axis,
)
from jaxnets.kernels.linear_softmax.tile_sizes import Tiles
from jaxnets.kernels.linear_softmax.tiles import Options
from jaxnets.kernels.linear_softmax.xla_one_pass import weighted_sum
from jaxnets.kernels.linear_softmax.xla_two_pass import TiledEngine
from jaxnets.kernels.losses import (
    LossAndLogSumExp,
    Reduction,
    check_ignore_index,
    check_labels,
    check_projection,
    check_reduction,
    check_weights,
    kept_weights,
    leave_out,
    reduce_losses,
    vocab_size_of,
)
from jaxnets.kernels.losses_over_rows import losses_over_rows
from jaxnets.kernels.meshes import WHOLE, eager_gradients
from jaxnets.kernels.pallas.contract import PallasOptions
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding

OPERATION = dispatch.register(
    dispatch.Operation(
        "linear_softmax_cross_entropy",
        ("tokens", "features", "vocab_size"),
        {
            "tiled": dispatch.anywhere,
            "pallas": dispatch.pallas_obstacle,
            "mosaic_gpu": dispatch.mosaic_gpu_obstacle,
        },
    )
)


@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike | Sequence,
    *,
    bias: ArrayLike | None = ...,
    num_classes: SupportsIndex | None = ...,
    label_weights: ArrayLike | Sequence | None = ...,
    token_weights: ArrayLike | Sequence | None = ...,
    class_weights: ArrayLike | Sequence | None = ...,
    ignore_index: SupportsIndex | None = ...,
    label_smoothing: SupportsFloat = ...,
    z_loss: SupportsFloat = ...,
    soft_cap: SupportsFloat | None = ...,
    temperature: ArrayLike | Sequence = ...,
    reduction: Reduction = ...,
    return_log_sum_exp: Literal[True],
    features_first: bool = ...,
    compute_dtype: DTypeLike | None = ...,
    precision: lax.Precision | str | None = ...,
    gradient_filter: SupportsFloat | None = ...,
    tiles: Tiles | None = ...,
    sharding: VocabSharding | None = ...,
    implementation: Literal["tiled", "pallas", "mosaic_gpu"] | None = ...,
) -> LossAndLogSumExp: ...


@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike | Sequence,
    *,
    bias: ArrayLike | None = ...,
    num_classes: SupportsIndex | None = ...,
    label_weights: ArrayLike | Sequence | None = ...,
    token_weights: ArrayLike | Sequence | None = ...,
    class_weights: ArrayLike | Sequence | None = ...,
    ignore_index: SupportsIndex | None = ...,
    label_smoothing: SupportsFloat = ...,
    z_loss: SupportsFloat = ...,
    soft_cap: SupportsFloat | None = ...,
    temperature: ArrayLike | Sequence = ...,
    reduction: Reduction = ...,
    return_log_sum_exp: Literal[False] = ...,
    features_first: bool = ...,
    compute_dtype: DTypeLike | None = ...,
    precision: lax.Precision | str | None = ...,
    gradient_filter: SupportsFloat | None = ...,
    tiles: Tiles | None = ...,
    sharding: VocabSharding | None = ...,
    implementation: Literal["tiled", "pallas", "mosaic_gpu"] | None = ...,
) -> jax.Array: ...


def linear_softmax_cross_entropy(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "*batch"] | Integer[ArrayLike, "*batch n"] | Sequence,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    num_classes: SupportsIndex | None = None,
    label_weights: Shaped[ArrayLike, "*batch n"] | Sequence | None = None,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    class_weights: Shaped[ArrayLike, " classes"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    z_loss: SupportsFloat = 0.0,
    soft_cap: SupportsFloat | None = None,
    temperature: Shaped[ArrayLike, ""] | Shaped[ArrayLike, "*batch"] | Sequence = 1.0,
    reduction: Reduction = "mean",
    return_log_sum_exp: bool = False,
    features_first: bool = False,
    compute_dtype: DTypeLike | None = None,
    precision: lax.Precision | str | None = None,
    gradient_filter: SupportsFloat | None = None,
    tiles: Tiles | None = None,
    sharding: VocabSharding | None = None,
    implementation: Literal["tiled", "pallas", "mosaic_gpu"] | None = None,
) -> Float[Array, "..."] | LossAndLogSumExp:
    r"""Exact cross-entropy of a linear output layer, with the logits never whole in memory.

    For a token with hidden state :math:`h`, label :math:`y` and V classes

    .. math::
        l_v &= c \tanh\big((w_v \cdot h + b_v) / (\tau c)\big),
        \qquad z = \log \sum_v e^{l_v} \\
        \text{loss} &= z - (1 - \varepsilon)\, l_y - \frac{\varepsilon}{V} \sum_v l_v + \zeta z^2

    with temperature :math:`\tau`, soft cap :math:`c` (none: the tanh is left out), label smoothing
    :math:`\varepsilon` (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7)
    and z-loss :math:`\zeta` (Chowdhery et al. 2022, "PaLM", section 5). The log-sum-exp is
    accumulated online over tiles of the vocabulary (Milakov and Gimelshein 2018). Of several labels
    with weights, as of mixup or of a distribution over few classes, it is :math:`\sum_i w_i
    \text{loss}(y_i)`, which with one pass over the logits and :math:`\varepsilon = \zeta = 0` is
    :math:`z \sum_i w_i - \sum_i w_i l_{y_i}`.

    Args:
      hidden: [..., features], float; bfloat16 and float16 are accumulated in float32.
      weight: [vocab, features], float; or, by ``features_first``, [features, vocab].
      labels: [...], integers of any width in [0, vocab_size), or ``ignore_index``. The loss of a
        label whose class is out is infinite. With ``label_weights`` [..., n].
      bias: [vocab] or None. A class of bias -inf is out, as padding of the vocabulary is: the cap
        does not bring it back, and V is the number of classes that are in.
      num_classes: how many rows of ``weight`` are classes, where it is padded at the end so that
        devices divide it; None: all. The others, finite, are out; labels lie in [0, num_classes).
      label_weights: [..., n], at least 0, of n labels a token, without a gradient. A label of
        weight 0 may be anything; a token without another is left out. Not with class weights, and
        on XLA only.
      token_weights: [...], a factor for each token; 0 (or False) leaves the token out, whatever its
        hidden state and label are.
      class_weights: [num_classes], a factor for the loss of each token by its label's class, beside
        ``token_weights``; 0 leaves the tokens of a class out, and "mean" divides by the sum of the
        products, as in torch. Not with label smoothing. The same on every device.
      ignore_index: a label that leaves its token out, for example -1 for padding.
      label_smoothing: in [0, 1].
      z_loss: at least 0.
      soft_cap: above 0; logits stay within (-soft_cap, soft_cap).
      temperature: above 0, one for all tokens or [...], one a token; may be traced, and then has a
        gradient. One a token, with a bias, costs a copy of ``weight``.
      reduction: "mean" (by weight), "sum" or "none" (one loss a token).
      return_log_sum_exp: also return z; differentiable, but the gradient then takes two passes.
      features_first: ``weight`` is [features, vocab], as the kernel of ``nnx.Linear`` is. No other
        layout of it is made, and its gradient comes in the same.
      compute_dtype: what the matmuls compute in, "bfloat16" say: hidden states and ``weight`` are
        rounded to it, ``weight`` tile by tile, so that a float32 table needs no copy. Sums, softmax
        and gradients are float32, and gradients come in the dtypes of what they belong to. None:
        the wider of the two dtypes.
      precision: of the matmuls, a ``jax.lax.Precision`` or its name, "highest" say, on XLA only;
        None: ``jax_default_matmul_precision``, by which TPUs round float32 to bfloat16.
      gradient_filter: in (0, 1), 2**-12 say: a tile of tokens and classes is left out of the
        gradients of hidden states and ``weight`` where every softmax in it is smaller (Wijmans et
        al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", section 4.3). With the
        filter g, and :math:`f_i` each token's factor in the loss, 1 / tokens in a mean, the
        gradient of a row of ``weight`` is off by at most :math:`g \sum_i |f_i| \|h_i\|`, that of a
        hidden state by :math:`g |f_i| \sum_v \|w_v\|`; the loss, and the gradient of ``bias``, by
        nothing. For classes sorted by frequency; on XLA, in one pass: not for "none",
        ``return_log_sum_exp``, or a soft cap with smoothing. None: all tiles count.
      tiles: of the XLA implementation; None: what serves the machine best, as far as is known, in a
        quarter of the memory of all logits and their gradient; ``Tiles(memory_mb=25)`` is lean.
      sharding: over which axes of a mesh classes and tokens are split; None: neither. ``weight``
        and ``bias`` are split over the first and the batch's first axis over the second, and so are
        their gradients; value and gradients are those of one device up to rounding. Where the
        vocabulary is no multiple of the shards, pad the table and say ``num_classes``.
      implementation: "tiled", on XLA, runs anywhere; "pallas" needs a GPU or TPU, "mosaic_gpu" a
        Hopper or Blackwell GPU and 16 bits, and both always take two passes. None is "tiled",
        unless the tuner measured another to be faster.

    Returns:
      The loss, a scalar or [...] for "none", in float32 (float64 where that is computed in), 0
      without tokens; with ``return_log_sum_exp`` :class:`LossAndLogSumExp`.

    Raises:
      TypeError: float labels, or integer hidden, weight, bias or ``compute_dtype``.
      ValueError: shapes that do not fit, or that the sharding does not divide, an option out of its
        range, an implementation that cannot run here, or a label out of range where its value is
        known at trace time. Under ``jit`` a label out of range gives NaN, as does a hidden state
        that holds NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> hidden = jnp.ones((2, 3, 4))
      >>> weight, labels = jnp.zeros((10, 4)), jnp.zeros((2, 3), jnp.int32)
      >>> loss = linear_softmax_cross_entropy(hidden, weight, labels)
      >>> bool(jnp.isclose(loss, jnp.log(10.0)))
      True
      >>> sharding = VocabSharding(jax.make_mesh((1, 1), ("data", "vocab")), "vocab", "data")
      >>> split = linear_softmax_cross_entropy(hidden, weight, labels, sharding=sharding)
      >>> bool(jnp.isclose(split, loss))
      True

    Reverse mode only: forward-mode derivatives of a ``jax.custom_vjp`` are refused by JAX.
    """
    hidden, weight, bias = check_projection(hidden, weight, bias, features_first)
    vocab_size, batch = vocab_size_of(weight, features_first), hidden.shape[:-1]
    ignore_index = check_ignore_index(ignore_index)
    token_weights = check_weights(token_weights, batch)
    classes = check_num_classes(num_classes, vocab_size)
    if label_weights is None:
        labels = check_labels(labels, batch, classes, ignore_index, token_weights)
        kept = known_as_kept(batch, labels, ignore_index, token_weights)
    else:
        labels, label_weights = check_soft_labels(
            labels, label_weights, batch, classes, ignore_index, token_weights
        )
        kept = known_as_kept(batch, None, None, token_weights)
    check_reduction(reduction)
    divisor = check_temperature(temperature, batch, kept)
    sharding = as_sharding(sharding)
    sharding.check(vocab_size, batch)
    computed = check_compute_dtype(compute_dtype, hidden, weight)
    sizes = sizes_of(hidden, weight, features_first, sharding, computed)
    implementation = only_tiled(
        implementation,
        label_weights=label_weights, precision=precision, gradient_filter=gradient_filter,
    )  # fmt: skip
    by_name = {name: getattr(sizes, name) for name in OPERATION.sizes}
    choice = dispatch.choose(OPERATION, sizes.dtype, by_name, implementation)
    known = None if reduction == "none" or return_log_sum_exp else choice
    options = check_options(label_smoothing, z_loss, soft_cap, tiles, features_first, sizes, known)
    options = options._replace(
        compute_dtype=computed, precision=check_precision(precision), num_classes=classes
    )
    class_weights = check_class_weights(
        class_weights, classes, label_weights, options.label_smoothing
    )
    if class_weights is not None:
        token_weights = weights_by_class(sharding, hidden, labels, class_weights, token_weights)
    least = check_gradient_filter(gradient_filter, options, reduction, return_log_sum_exp)
    engine: Engine = FusedEngine(call) if (call := PallasOptions.of(choice)) else TiledEngine(least)
    return _loss(
        engine, sharding, options, reduction, bool(return_log_sum_exp), ignore_index,
        hidden, weight, bias, labels, label_weights, token_weights, divisor,
    )  # fmt: skip


@eager_gradients
@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
@jax.named_scope("linear_softmax_cross_entropy")
@losses_over_rows(
    hidden=0, weight=WHOLE, bias=WHOLE, labels=0, label_weights=0, token_weights=0,
    temperature=temperature_axis,
)  # fmt: skip
def _loss(
    engine: Engine,
    sharding: VocabSharding,
    options: Options,
    reduction: str,
    return_log_sum_exp: bool,
    ignore_index: int | None,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    label_weights: jax.Array | None,
    token_weights: jax.Array | None,
    temperature: jax.Array | None,
) -> jax.Array | LossAndLogSumExp:
    batch, vocab_size = hidden.shape[:-1], weight.shape[options.vocab_axis]
    accumulator = options.accumulator(hidden, weight)
    if not labels.size:
        losses = jnp.zeros(batch if reduction == "none" else (), accumulator)
        nothing = jnp.zeros(batch, accumulator)
        return LossAndLogSumExp(losses, nothing) if return_log_sum_exp else losses
    hidden, labels, label_weights, token_weights = sharding.place_tokens(
        hidden, labels, label_weights, token_weights
    )
    mass, classes = None, options.classes(vocab_size)
    targets: Labels
    if label_weights is None:
        kept, targets = leave_out(
            token_weights, labels, ignore_index, vocab_size, accumulator, classes
        )
    else:
        kept = kept_weights(labels, token_weights, ignore_index, batch, accumulator, label_weights)
        targets, mass = soft_labels(labels, label_weights, kept, ignore_index, vocab_size, classes)
    hidden, weight, bias = prepared(sharding, options, hidden, weight, bias, temperature, kept)

    if isinstance(engine, TiledEngine) and is_one_pass(options, reduction, return_log_sum_exp):
        factors = factors_by_reduction(sharding, kept, batch, reduction, accumulator)
        factors = factors if mass is None else factors * mass
        return weighted_sum(sharding, engine, options, hidden, weight, bias, targets, factors)
    losses, log_sum_exp = per_token(sharding, engine, options, hidden, weight, bias, targets)
    if mass is not None:
        losses = jnp.where(mass == 0, 0, losses) * mass
    loss = reduce_losses(losses, kept, reduction)
    if kept is not None:
        log_sum_exp = jnp.where(kept == 0, 0, log_sum_exp)
    return LossAndLogSumExp(loss, log_sum_exp) if return_log_sum_exp else loss
