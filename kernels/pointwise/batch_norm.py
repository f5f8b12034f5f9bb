"""Batch normalization folded into the kernel before it, for inference."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float

from jaxnets.kernels.checks import as_floats
from jaxnets.kernels.numerics import result_dtype
from jaxnets.kernels.pointwise.checks import optional_floats


class FoldedBatchNorm(NamedTuple):
    """What :func:`fold_batch_norm` returns: of the one layer in place of the two.

    Attributes:
      kernel: as the layer's, [..., out].
      bias: [out].

    Example:
      >>> import jax.numpy as jnp
      >>> ones = jnp.ones(4)
      >>> fold_batch_norm(jnp.ones((3, 4)), None, ones, 3 * ones, epsilon=1.0).bias[0].item()
      -0.5
    """

    kernel: jax.Array
    bias: jax.Array


@jax.named_scope("fold_batch_norm")
def fold_batch_norm(
    kernel: Float[ArrayLike, "*window out"],
    bias: Float[ArrayLike, " out"] | None,
    mean: Float[ArrayLike, " out"],
    variance: Float[ArrayLike, " out"],
    scale: Float[ArrayLike, " out"] | None = None,
    offset: Float[ArrayLike, " out"] | None = None,
    *,
    epsilon: float = 1e-5,
) -> FoldedBatchNorm:
    r"""Kernel and bias of one layer that does what a layer and its batch normalization do.

    .. math::
        W'_{\cdot o} = W_{\cdot o} \frac{\gamma_o}{\sqrt{\sigma^2_o + \epsilon}}, \quad
        b'_o = (b_o - \mu_o) \frac{\gamma_o}{\sqrt{\sigma^2_o + \epsilon}} + \beta_o

    (Jacob et al. 2018, section 3.2.) It holds for any linear layer whose output channels are the
    kernel's last axis, where nothing stands between it and the normalization, and for the running
    statistics only: in training the batch's own are used.

    Args:
      kernel: [..., out].
      bias: [out] or None.
      mean, variance: [out], the running statistics.
      scale, offset: [out], gamma and beta; None: 1 and 0.
      epsilon: as the normalization has it.

    Returns:
      :class:`FoldedBatchNorm`.

    Raises:
      TypeError: an array is not of floats.
      ValueError: a vector that is not [out], or an epsilon that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> ones = jnp.ones(4)
      >>> kernel, bias = fold_batch_norm(jnp.ones((3, 4)), None, ones, 3 * ones, epsilon=1.0)
      >>> float(kernel[0, 0]), float(bias[0])
      (0.5, -0.5)
    """
    kernel, mean = as_floats("kernel", kernel), as_floats("mean", mean)
    variance = as_floats("variance", variance)
    bias, scale = optional_floats("bias", bias), optional_floats("scale", scale)
    offset = optional_floats("offset", offset)
    vectors = {"bias": bias, "mean": mean, "variance": variance, "scale": scale, "offset": offset}
    for name, vector in vectors.items():
        if vector is not None and vector.shape != kernel.shape[-1:]:
            raise ValueError(f"{name} must be [out] = {kernel.shape[-1:]}, got {vector.shape}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    dtype = result_dtype(
        kernel, *(v for v in (bias, mean, variance, scale, offset) if v is not None)
    )
    kernel, mean, variance = (a.astype(dtype) for a in (kernel, mean, variance))
    factor = jax.lax.rsqrt(variance + epsilon)
    factor = factor if scale is None else factor * scale.astype(dtype)
    shift = -mean if bias is None else bias.astype(dtype) - mean
    folded = shift * factor if offset is None else shift * factor + offset.astype(dtype)
    return FoldedBatchNorm(kernel * jnp.expand_dims(factor, range(kernel.ndim - 1)), folded)
