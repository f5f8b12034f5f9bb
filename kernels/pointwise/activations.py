"""Activations of the epilogue, each with its slope by what the backward keeps of the forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

ActivationName = Literal["relu", "sigmoid", "tanh", "silu", "gelu", "gelu_exact"]


class Activation(NamedTuple):
    """``slope(kept)`` is d activation / d sum, where ``kept`` is the output or else the sum.

    ``in_kernel`` stands for ``function`` in Pallas where not all platforms have its primitives.
    """

    function: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]
    keeps_output: bool
    in_kernel: Callable[[jax.Array], jax.Array] | None = None


def _slope_of(function: Callable) -> Callable:
    def slope(total):
        return jax.jvp(function, (total,), (jnp.ones_like(total),))[1]

    return slope


def _gelu_exact(total: jax.Array) -> jax.Array:
    """x times the normal distribution's share below x (Hendrycks and Gimpel 2016, section 2)."""
    return jax.nn.gelu(total, approximate=False)


def _gelu_exact_in_kernel(total: jax.Array) -> jax.Array:
    """The same in float32 and in arithmetic: Triton has no error function in JAX.

    Its complement is Numerical Recipes' ``erfcc`` (Press et al. 1992, section 6.2), good to 1.2e-7
    of its value on both sides.
    """
    z = abs(total) * (0.5**0.5)
    t = 1 / (1 + 0.5 * z)
    series = 0.17087277
    for coefficient in _ERFCC:
        series = coefficient + t * series
    upper = 0.5 * t * jnp.exp(series - z * z)  # the share above abs(total)
    return total * jnp.where(total < 0, upper, 1 - upper)


_ERFCC = (
    -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196,
    1.00002368, -1.26551223,
)  # fmt: skip

# Those whose slope can be told from their output keep that: it is in memory anyway, for what
# comes next. The others keep the sum before them.
ACTIVATIONS = {
    "relu": Activation(jax.nn.relu, lambda output: output > 0, keeps_output=True),
    "sigmoid": Activation(jax.nn.sigmoid, lambda output: output * (1 - output), keeps_output=True),
    "tanh": Activation(jnp.tanh, lambda output: 1 - output * output, keeps_output=True),
    "silu": Activation(jax.nn.silu, _slope_of(jax.nn.silu), keeps_output=False),
    "gelu": Activation(jax.nn.gelu, _slope_of(jax.nn.gelu), keeps_output=False),
    "gelu_exact": Activation(
        _gelu_exact, _slope_of(_gelu_exact), keeps_output=False, in_kernel=_gelu_exact_in_kernel
    ),
}
