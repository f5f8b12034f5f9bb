"""Batch normalisation folded into the kernel before it, for inference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.named_scope("fold_batch_norm")
def fold_batch_norm(
    kernel: Float[Array, "*window out"],
    bias: Float[Array, " out"] | None,
    mean: Float[Array, " out"],
    variance: Float[Array, " out"],
    scale: Float[Array, " out"] | None = None,
    offset: Float[Array, " out"] | None = None,
    *,
    epsilon: float = 1e-5,
) -> tuple[Float[Array, "*window out"], Float[Array, " out"]]:
    r"""Kernel and bias of one layer that does what a layer and its batch normalisation do.

    .. math::
        W'_{\cdot o} = W_{\cdot o} \frac{\gamma_o}{\sqrt{\sigma^2_o + \epsilon}}, \quad
        b'_o = (b_o - \mu_o) \frac{\gamma_o}{\sqrt{\sigma^2_o + \epsilon}} + \beta_o

    (Jacob et al. 2018, section 3.2.) It holds for any linear layer whose output channels are the
    kernel's last axis, where nothing stands between it and the normalisation, and for the running
    statistics only: in training the batch's own are used.

    Args:
      kernel: [..., out].
      bias: [out] or None.
      mean, variance: [out], the running statistics.
      scale, offset: [out], gamma and beta; None: 1 and 0.
      epsilon: as the normalisation has it.

    Raises:
      ValueError: a vector that is not [out], or an epsilon that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> ones = jnp.ones(4)
      >>> kernel, bias = fold_batch_norm(jnp.ones((3, 4)), None, ones, 3 * ones, epsilon=1.0)
      >>> float(kernel[0, 0]), float(bias[0])
      (0.5, -0.5)
    """
    vectors = {"bias": bias, "mean": mean, "variance": variance, "scale": scale, "offset": offset}
    for name, vector in vectors.items():
        if vector is not None and vector.shape != kernel.shape[-1:]:
            raise ValueError(f"{name} must be [out] = {kernel.shape[-1:]}, got {vector.shape}")
    if epsilon <= 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    factor = jax.lax.rsqrt(variance + epsilon)
    factor = factor if scale is None else factor * scale
    shift = -mean if bias is None else bias - mean
    folded = shift * factor
    return kernel * factor, folded if offset is None else jnp.add(folded, offset)
