"""The equation, as one einsum; channels last."""

from __future__ import annotations

import jax.numpy as jnp

from jaxnets.kernels.pointwise.activations import ACTIVATIONS


def pointwise_conv(inputs, kernel, bias, residual, strides, groups, activation):
    """As :func:`jaxnets.kernels.pointwise_conv`; ``strides`` has one integer a spatial axis."""
    inputs = inputs[(slice(None), *(slice(None, None, stride) for stride in strides))]
    grouped = inputs.reshape(*inputs.shape[:-1], groups, -1)
    weights = kernel.reshape(kernel.shape[0], groups, -1)
    total = jnp.einsum("...gi,igo->...go", grouped, weights)
    total = total.reshape(*inputs.shape[:-1], kernel.shape[1])
    for term in (bias, residual):
        total = total if term is None else total + term
    return total if activation is None else ACTIVATIONS[activation].function(total)
