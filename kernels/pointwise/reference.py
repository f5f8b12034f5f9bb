"""The equation, as one einsum; channels last."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnets.kernels.pointwise.activations import ACTIVATIONS


def pointwise_conv(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    residual: jax.Array | None,
    strides: tuple[int, ...],
    groups: int,
    activation: str | None,
) -> jax.Array:
    """As :func:`jaxnets.kernels.pointwise_conv`; ``strides`` has one integer a spatial axis."""
    inputs = inputs[(slice(None), *(slice(None, None, stride) for stride in strides))]
    grouped = inputs.reshape(*inputs.shape[:-1], groups, kernel.shape[0])
    weights = kernel.reshape(kernel.shape[0], groups, kernel.shape[1] // groups)
    total = jnp.einsum("...gi,igo->...go", grouped, weights)
    total = total.reshape(*inputs.shape[:-1], kernel.shape[1])
    if bias is not None:
        total = total + bias.reshape((1,) * (total.ndim - 1) + bias.shape)
    if residual is not None:
        total = total + residual
    return total if activation is None else ACTIVATIONS[activation].function(total)
