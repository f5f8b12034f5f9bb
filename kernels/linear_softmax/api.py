"""The exact softmax cross-entropy of an output projection, its logits never whole in memory.

The public function and its equation are here; the gradient is computed in one of two ways.

- ``xla_one_pass.py``, for a scalar loss: loss and gradient together, three matmuls, each logit
  computed once.
- ``per_token.py``, where a loss a token or the log-sum-exp is asked for: a token's cotangent comes
  only with the backward pass, which computes the logits again, tile by tile: four matmuls. Its
  engine is ``xla_two_pass.py`` on XLA or ``pallas.py`` on Pallas, which always goes this way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, SupportsFloat, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels import dispatch
from jaxnets.kernels.checks import as_int, as_number, is_known
from jaxnets.kernels.linear_softmax.pallas import FusedEngine
from jaxnets.kernels.linear_softmax.per_token import Engine, per_token
from jaxnets.kernels.linear_softmax.tiles import Options, is_in
from jaxnets.kernels.linear_softmax.xla_one_pass import weighted_sum
from jaxnets.kernels.linear_softmax.xla_two_pass import TiledEngine
from jaxnets.kernels.losses import (
    check_ignore_index,
    check_labels,
    check_projection,
    check_reduction,
    check_weights,
    leave_out,
    reduce_losses,
)
from jaxnets.kernels.losses_over_rows import losses_over_rows
from jaxnets.kernels.meshes import WHOLE, eager_gradients
from jaxnets.kernels.numerics import accumulator_dtype, result_dtype
from jaxnets.kernels.pallas.fused_matmul import Call

OPERATION = dispatch.register(
    dispatch.Operation(
        "linear_softmax_cross_entropy",
        ("tokens", "features", "vocab"),
        {"tiled": dispatch.anywhere, "pallas": dispatch.pallas_obstacle},
    )
)


def linear_softmax_cross_entropy(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"],
    bias: Float[ArrayLike, " vocab"] | None,
    labels: Integer[ArrayLike, "*batch"] | Sequence,
    *,
    weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    z_loss: SupportsFloat = 0.0,
    soft_cap: SupportsFloat | None = None,
    temperature: Shaped[ArrayLike, ""] | Shaped[ArrayLike, "*batch"] | Sequence = 1.0,
    reduction: str = "mean",
    return_log_sum_exp: bool = False,
    token_tile: SupportsIndex = 128,
    vocab_tile: SupportsIndex = 1024,
    implementation: str | None = None,
) -> Float[Array, "..."] | tuple[Float[Array, "..."], Float[Array, "*batch"]]:
    r"""Exact cross-entropy of a linear output layer, with the logits never whole in memory.

    For a token with hidden state :math:`h`, label :math:`y` and V classes

    .. math::
        l_v &= c \tanh\big((w_v \cdot h + b_v) / (\tau c)\big),
        \qquad z = \log \sum_v e^{l_v} \\
        \text{loss} &= z - (1 - \varepsilon)\, l_y - \frac{\varepsilon}{V} \sum_v l_v + \zeta z^2

    with temperature :math:`\tau`, soft cap :math:`c` (none: the tanh is left out), label smoothing
    :math:`\varepsilon` (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7)
    and z-loss :math:`\zeta` (Chowdhery et al. 2022, "PaLM", section 5). The log-sum-exp is
    accumulated online over tiles of the vocabulary (Milakov and Gimelshein 2018).

    Args:
      hidden: [..., features], float; bfloat16 and float16 are accumulated in float32.
      weight: [vocab, features], float.
      bias: [vocab] or None. A class of bias -inf is out, as padding of the vocabulary is: the cap
        does not bring it back, and V is the number of classes that are in.
      labels: [...], integers of any width in [0, vocab), or ``ignore_index``. The loss of a label
        whose class is out is infinite.
      weights: [...], a factor for each token; 0 (or False) leaves the token out, whatever its
        hidden state and label are.
      ignore_index: a label that leaves its token out, for example -1 for padding.
      label_smoothing: in [0, 1].
      z_loss: at least 0.
      soft_cap: above 0; logits stay within (-soft_cap, soft_cap).
      temperature: above 0, one for all tokens or [...], one a token; may be traced, and then has a
        gradient. One a token, with a bias, costs a copy of ``weight``.
      reduction: "mean" (by weight), "sum" or "none" (one loss a token).
      return_log_sum_exp: also return z; differentiable, but the gradient then takes two passes. 0
        for a token that is left out.
      token_tile: tokens at a time in the one-pass gradient, whose temporary is
        [token_tile, vocab]. Smaller saves memory, larger reads the weights less often.
      vocab_tile: classes at a time.
      implementation: "tiled", on XLA, runs anywhere; "pallas" needs a GPU or TPU and always takes
        two passes. None is "tiled", unless the tuner measured "pallas" to be faster.

    Returns:
      The loss, a scalar or [...] for "none", in float32 (float64 for float64 input); with
      ``return_log_sum_exp`` a pair of it and z, [...]. 0 without tokens.

    Raises:
      TypeError: float labels, or integer hidden, weight or bias.
      ValueError: shapes that do not fit, an option out of its range, an implementation that cannot
        run here, or a label out of range where its value is known at trace time. Under ``jit`` a
        label out of range gives NaN, as does a hidden state that holds NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> hidden = jnp.ones((2, 3, 4))
      >>> weight, labels = jnp.zeros((10, 4)), jnp.zeros((2, 3), jnp.int32)
      >>> loss = linear_softmax_cross_entropy(hidden, weight, None, labels)
      >>> bool(jnp.isclose(loss, jnp.log(10.0)))
      True

    Reverse mode only: forward-mode derivatives of a ``jax.custom_vjp`` are refused by JAX.
    """
    hidden, weight, bias = check_projection(hidden, weight, bias)
    ignore_index = check_ignore_index(ignore_index)
    weights = check_weights(weights, hidden.shape[:-1])
    labels = check_labels(labels, hidden.shape[:-1], weight.shape[0], ignore_index, weights)
    check_reduction(reduction)
    kept = _known_as_kept(labels, ignore_index, weights)
    divisor = _check_temperature(temperature, labels.shape, kept)
    options = check_options(label_smoothing, z_loss, soft_cap, token_tile, vocab_tile)
    engine = choose_engine(hidden, weight, labels.size, weight.shape[0], implementation)
    return _loss(
        engine, options, reduction, return_log_sum_exp, ignore_index,
        hidden, weight, bias, labels, weights, divisor,
    )  # fmt: skip


def choose_engine(
    hidden: jax.Array, weight: jax.Array, tokens: int, vocab: int, implementation: str | None
) -> Engine:
    """The engine for so many tokens and classes on a device, in the dtype of the arrays."""
    sizes = {"tokens": tokens, "features": hidden.shape[-1], "vocab": vocab}
    dtype = result_dtype(hidden, weight)
    call = Call.of(dispatch.choose(OPERATION, dtype, sizes, implementation))
    return TiledEngine() if call is None else FusedEngine(call)


def check_options(
    label_smoothing: Any, z_loss: Any, soft_cap: Any, token_tile: Any = 128, vocab_tile: Any = 1024
) -> Options:
    """The options, each in its range: they are static, so plain numbers."""
    smoothing, z_loss = as_number("label_smoothing", label_smoothing), as_number("z_loss", z_loss)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {smoothing}")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss must be at least 0, got {z_loss}")
    if soft_cap is not None:
        soft_cap = as_number("soft_cap", soft_cap)
        if not 0 < soft_cap < math.inf:
            raise ValueError(f"soft_cap must be above 0, got {soft_cap}")
    tiles = as_int("token_tile", token_tile, 1), as_int("vocab_tile", vocab_tile, 1)
    return Options(smoothing, z_loss, soft_cap, *tiles)


def _check_temperature(temperature: Any, shape: tuple[int, ...], kept: Any) -> jax.Array | None:
    """``temperature``, [] or of ``shape``, as an array; None where it is the number 1.

    Raises unless it is above 0 where that is known; of one a token, where ``kept`` [...] (or
    nothing is raised, if it is None).
    """
    if isinstance(temperature, float | int) and temperature == 1:
        return None
    try:
        temperature = jnp.asarray(temperature)
    except (TypeError, ValueError):
        raise TypeError(
            f"temperature must be a number or one a token, got {temperature!r}"
        ) from None
    if jnp.iscomplexobj(temperature):
        raise TypeError(f"temperature must be real, got dtype {temperature.dtype}")
    if temperature.shape not in ((), shape):
        raise ValueError(
            f"temperature must be one number for all tokens or one a token, shape {shape}, got "
            f"shape {temperature.shape}"
        )
    if not jnp.issubdtype(temperature.dtype, jnp.floating):
        temperature = temperature.astype(jnp.float32)
    if is_known(temperature) and (temperature.ndim == 0 or kept is not None):
        values = np.asarray(temperature, np.float64)
        wrong = ~((values > 0) & (values < math.inf))
        wrong &= kept if values.ndim else True
        if wrong.any():
            raise ValueError(f"temperature must be above 0, got {values[wrong].flat[0]}")
    return temperature


def _known_as_kept(
    labels: jax.Array, ignore_index: int | None, weights: jax.Array | None
) -> np.ndarray | None:
    """Which tokens are not left out, [...] bool; None where the values are not known."""
    if not is_known(labels) or not is_known(weights):
        return None
    kept = np.ones(labels.shape, bool) if weights is None else np.asarray(weights) != 0
    return kept if ignore_index is None else kept & (np.asarray(labels) != ignore_index)


def _temperature_axis(of: dict[str, Any]) -> int:
    temperature = of["temperature"]
    return WHOLE if temperature is None or not temperature.ndim else 0


@eager_gradients
@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
@jax.named_scope("linear_softmax_cross_entropy")
@losses_over_rows(
    hidden=0, weight=WHOLE, bias=WHOLE, labels=0, weights=0, temperature=_temperature_axis
)
def _loss(
    engine: Engine,
    options: Options,
    reduction: str,
    return_log_sum_exp: bool,
    ignore_index: int | None,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    weights: jax.Array | None,
    temperature: jax.Array | None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    batch = labels.shape
    accumulator = accumulator_dtype(hidden, weight)
    if not labels.size:
        losses = jnp.zeros(batch if reduction == "none" else (), accumulator)
        return (losses, jnp.zeros(batch, accumulator)) if return_log_sum_exp else losses
    kept, labels = leave_out(weights, labels, ignore_index, weight.shape[0], accumulator)
    if kept is not None:
        # Masked before any arithmetic: a token that is left out leaves no trace, be it NaN.
        hidden = jnp.where((kept == 0)[..., None], 0, hidden)
    if temperature is not None:
        hidden, weight, bias = _divide(hidden, weight, bias, temperature, kept, accumulator)
    if bias is None:
        bias = jnp.zeros(weight.shape[0], accumulator)
    kept = None if kept is None else kept.reshape(-1)
    flat_labels = labels.reshape(-1)
    flat_hidden = hidden.reshape(flat_labels.size, hidden.shape[-1])

    # A soft cap bends each logit, and then label smoothing is no longer a sum in closed form.
    one_pass = isinstance(engine, TiledEngine) and (
        options.soft_cap is None or options.label_smoothing == 0
    )
    if reduction != "none" and not return_log_sum_exp and one_pass:
        factors = jnp.ones(flat_labels.shape, accumulator) if kept is None else kept
        if reduction == "mean":
            total = factors.sum()
            factors = jnp.where(total == 0, 0, factors / jnp.where(total == 0, 1, total))
        return weighted_sum(options, flat_hidden, weight, bias, flat_labels, factors)
    losses, log_sum_exp = per_token(engine, options, flat_hidden, weight, bias, flat_labels)
    loss = reduce_losses(losses, kept, reduction)
    if kept is not None:
        log_sum_exp = jnp.where(kept == 0, 0, log_sum_exp)
    if reduction == "none":
        loss = loss.reshape(batch)
    return (loss, log_sum_exp.reshape(batch)) if return_log_sum_exp else loss


def _divide(
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    temperature: jax.Array,
    kept: jax.Array | None,
    accumulator: jnp.dtype,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """A projection whose logits are those of the given one divided by ``temperature``."""
    temperature = temperature.astype(accumulator)
    if temperature.ndim and kept is not None:
        temperature = jnp.where(kept == 0, 1, temperature)
    # What is no temperature is NaN, where it is found out only now.
    scale = 1 / jnp.where(temperature > 0, temperature, jnp.nan)
    wide = hidden.astype(accumulator) * (scale[..., None] if scale.ndim else scale)
    # float16 ends at 65,504, which what is divided by a small temperature may pass.
    narrow = accumulator if hidden.dtype == jnp.float16 else hidden.dtype
    if bias is None:
        return wide.astype(narrow), weight, None
    inside = is_in(bias)  # the others stay as they are: 0 times inf would be their gradient
    bias = jnp.where(inside, bias, 0).astype(accumulator)
    if temperature.ndim == 0:
        return wide.astype(narrow), weight, jnp.where(inside, bias * scale, -jnp.inf)
    # Of a temperature for each token a bias makes no vector any more, but one more feature.
    wide = jnp.concatenate([wide, scale[..., None]], -1)
    weight = jnp.concatenate([weight.astype(accumulator), bias[:, None]], 1)
    return wide, weight, jnp.where(inside, jnp.zeros_like(bias), -jnp.inf)
