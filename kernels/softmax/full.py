"""The exact softmax cross-entropy of an output projection, its logits never whole in memory.

The public function and its equation are here; the gradient is computed in one of two ways.

- ``one_pass.py``, for a scalar loss: loss and gradient together, three matmuls, each logit computed
  once.
- ``per_token.py``, where a loss a token or the log-sum-exp is asked for: a token's cotangent comes
  only with the backward pass, which computes the logits again, tile by tile: four matmuls. Its
  engine is ``two_pass.py`` on XLA or ``fused.py`` on Pallas, which always goes this way.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Num

from jaxnets.kernels import dispatch
from jaxnets.kernels.pallas.fused_matmul import Call
from jaxnets.kernels.softmax import arguments
from jaxnets.kernels.softmax.fused import FusedEngine
from jaxnets.kernels.softmax.one_pass import weighted_sum
from jaxnets.kernels.softmax.per_token import Engine, per_token
from jaxnets.kernels.softmax.tiles import Options, accumulator_dtype
from jaxnets.kernels.softmax.two_pass import TiledEngine

OPERATION = dispatch.register(
    dispatch.Operation(
        "linear_softmax_cross_entropy",
        ("tokens", "features", "vocab"),
        {"tiled": dispatch.anywhere, "pallas": dispatch.pallas_obstacle},
    )
)


def linear_softmax_cross_entropy(
    hidden: Float[Array, "*batch features"],
    weight: Float[Array, "vocab features"],
    bias: Float[Array, " vocab"] | None,
    labels: Integer[Array, "*batch"],
    *,
    weights: Num[Array, "*batch"] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    reduction: str = "mean",
    return_log_sum_exp: bool = False,
    token_tile: int = 128,
    vocab_tile: int = 1024,
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
      bias: [vocab] or None.
      labels: [...], integers in [0, vocab), or ``ignore_index``.
      weights: [...], a factor for each token; 0 (or False) leaves the token out.
      ignore_index: a label that leaves its token out, for example -1 for padding.
      label_smoothing: in [0, 1].
      z_loss: at least 0.
      soft_cap: above 0; logits stay within (-soft_cap, soft_cap).
      temperature: above 0; may be a traced scalar, and then has a gradient.
      reduction: "mean" (by weight), "sum" or "none" (one loss a token).
      return_log_sum_exp: also return z; differentiable, but the gradient then takes two passes.
      token_tile: tokens at a time in the one-pass gradient, whose temporary is
        [token_tile, vocab]. Smaller saves memory, larger reads the weights less often.
      vocab_tile: classes at a time.
      implementation: "tiled", on XLA, runs anywhere; "pallas" needs a GPU or TPU and always takes
        two passes. None is "tiled", unless the tuner measured "pallas" to be faster.

    Returns:
      The loss in float32 (float64 for float64 input): a scalar, or [...] for "none"; with
      ``return_log_sum_exp`` a pair of it and z, [...].

    Raises:
      TypeError: float labels, or integer hidden, weight or bias.
      ValueError: shapes that do not fit, an empty batch, an option out of its range, an
        implementation that cannot run here, or a label out of range where its value is known at
        trace time. Under ``jit`` a label out of range gives NaN, as does a hidden state that holds
        NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> hidden = jnp.ones((2, 3, 4))
      >>> weight, labels = jnp.zeros((10, 4)), jnp.zeros((2, 3), jnp.int32)
      >>> loss = linear_softmax_cross_entropy(hidden, weight, None, labels)
      >>> bool(jnp.isclose(loss, jnp.log(10.0)))
      True

    Reverse mode only: forward-mode derivatives of a ``jax.custom_vjp`` are refused by JAX.
    """
    hidden, weight = jnp.asarray(hidden), jnp.asarray(weight)
    arguments.check_projection(hidden, weight, bias)
    arguments.check_labels(labels, hidden.shape[:-1], weight.shape[0], ignore_index)
    arguments.check_weights(weights, hidden.shape[:-1])
    arguments.check_reduction(reduction)
    if isinstance(temperature, float | int) and temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    options = Options(label_smoothing, z_loss, soft_cap, token_tile, vocab_tile)
    check_options(options)
    engine = choose_engine(hidden, weight, labels.size, weight.shape[0], implementation)
    return _loss(
        engine, options, reduction, return_log_sum_exp, ignore_index,
        hidden, weight, bias, jnp.asarray(labels), weights, temperature,
    )  # fmt: skip


def choose_engine(hidden, weight, tokens: int, vocab: int, implementation: str | None) -> Engine:
    """The engine for so many tokens and classes on a device, in the dtype of the arrays."""
    sizes = {"tokens": tokens, "features": hidden.shape[-1], "vocab": vocab}
    dtype = jnp.result_type(hidden, weight)
    call = Call.of(dispatch.choose(OPERATION, dtype, sizes, implementation))
    return TiledEngine() if call is None else FusedEngine(call)


def check_options(options: Options) -> None:
    """Raise unless each option is in its range."""
    if not 0 <= options.label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {options.label_smoothing}")
    if options.z_loss < 0:
        raise ValueError(f"z_loss must be at least 0, got {options.z_loss}")
    if options.soft_cap is not None and options.soft_cap <= 0:
        raise ValueError(f"soft_cap must be above 0, got {options.soft_cap}")
    for name in ("token_tile", "vocab_tile"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
@jax.named_scope("linear_softmax_cross_entropy")
def _loss(
    engine, options, reduction, return_log_sum_exp, ignore_index,
    hidden, weight, bias, labels, weights, temperature,
):  # fmt: skip
    batch = labels.shape
    accumulator = accumulator_dtype(hidden, weight)
    if bias is None:
        bias = jnp.zeros(weight.shape[0], accumulator)
    if not (isinstance(temperature, float | int) and temperature == 1):
        hidden = (hidden.astype(accumulator) / temperature).astype(hidden.dtype)
        bias = (bias.astype(accumulator) / temperature).astype(accumulator)
    flat_weights = None if weights is None else weights.reshape(-1)
    kept, flat_labels = arguments.leave_out(
        flat_weights, labels.reshape(-1), ignore_index, weight.shape[0], accumulator
    )
    flat_hidden = hidden.reshape(-1, hidden.shape[-1])

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
    loss = arguments.reduce_losses(losses, kept, reduction)
    if reduction == "none":
        loss = loss.reshape(batch)
    return (loss, log_sum_exp.reshape(batch)) if return_log_sum_exp else loss
