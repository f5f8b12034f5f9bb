"""Activations of the epilogue, each with its slope by what the backward keeps of the forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Activation(NamedTuple):
    """``slope(kept)`` is d activation / d sum, where ``kept`` is the output or else the sum."""

    function: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]
    keeps_output: bool


def _slope_of(function):
    def slope(total):
        return jax.jvp(function, (total,), (jnp.ones_like(total),))[1]

    return slope


# Those whose slope can be told from their output keep that: it is in memory anyway, for what
# comes next. The others keep the sum before them.
ACTIVATIONS = {
    "relu": Activation(jax.nn.relu, lambda output: output > 0, keeps_output=True),
    "sigmoid": Activation(jax.nn.sigmoid, lambda output: output * (1 - output), keeps_output=True),
    "tanh": Activation(jnp.tanh, lambda output: 1 - output * output, keeps_output=True),
    "silu": Activation(jax.nn.silu, _slope_of(jax.nn.silu), keeps_output=False),
    "gelu": Activation(jax.nn.gelu, _slope_of(jax.nn.gelu), keeps_output=False),
}
