"""Checks of what a 1x1 convolution is given, at trace time and in one place."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxnets.kernels.pointwise.activations import ACTIVATIONS


def check_arrays(inputs, kernel, bias, groups: int, *, channels_first: bool) -> None:
    """Raise unless ``inputs`` fit ``kernel [in // groups, out]`` and ``bias [out]``."""
    _check_floats(inputs=inputs, kernel=kernel, bias=bias)
    if kernel.ndim != 2:
        hint = ""
        if kernel.ndim > 2 and set(kernel.shape[:-2]) == {1}:
            hint = f"; give kernel.reshape{kernel.shape[-2:]}"
        raise ValueError(f"kernel must be [in // groups, out], got shape {kernel.shape}{hint}")
    axes = "[batch, in, ...]" if channels_first else "[batch, ..., in]"
    if inputs.ndim < 2:
        raise ValueError(f"inputs must be {axes}, got shape {inputs.shape}")
    if groups < 1 or kernel.shape[1] % groups:
        raise ValueError(f"groups must divide out = {kernel.shape[1]}, got {groups}")
    wanted = kernel.shape[0] * groups
    given, other = (1, -1) if channels_first else (-1, 1)
    if inputs.shape[given] != wanted:
        hint = ""
        if inputs.shape[other] == wanted:
            hint = f"; for that layout say channels_first={not channels_first}"
        elif inputs.shape[given] == kernel.shape[1] and groups == 1:
            hint = "; kernel looks transposed: give [in, out]"
        raise ValueError(
            f"inputs must be {axes} with in = kernel.shape[0] * groups = {wanted}, "
            f"got shape {inputs.shape} with kernel {kernel.shape}{hint}"
        )
    _check_not_empty(inputs, kernel)
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias must be [out] = {kernel.shape[1:]}, got shape {bias.shape}")


def per_axis(strides: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """``strides`` as one positive integer for each of ``axes`` spatial axes."""
    each = (strides,) * axes if isinstance(strides, int) else tuple(strides)
    if len(each) != axes or any(stride < 1 for stride in each):
        raise ValueError(
            f"strides must be a positive integer or one for each of the {axes} spatial axes, "
            f"got {strides}"
        )
    return each


def check_epilogue(activation: str | None, residual, shape: tuple[int, ...]) -> None:
    """Raise unless ``activation`` is known and ``residual`` has the output's shape."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be None or one of {tuple(ACTIVATIONS)}, got {activation!r}"
        )
    if residual is None:
        return
    if residual.shape != shape:
        raise ValueError(f"residual must have the output's shape {shape}, got {residual.shape}")
    _check_floats(residual=residual)


def check_depthwise(inputs, kernel) -> None:
    """Raise unless ``inputs [batch, ..., channels]`` fit ``kernel [*window, channels]``."""
    _check_floats(inputs=inputs, kernel=kernel)
    if not 2 <= kernel.ndim <= 4:
        raise ValueError(f"kernel must be [*window, channels], got shape {kernel.shape}")
    if inputs.ndim != kernel.ndim + 1 or inputs.shape[-1] != kernel.shape[-1]:
        raise ValueError(
            f"inputs must be [batch, ..., channels] with {kernel.ndim - 1} spatial axes and "
            f"channels = {kernel.shape[-1]} as the kernel has, got shape {inputs.shape}"
        )
    _check_not_empty(inputs, kernel)


def _check_floats(**arrays) -> None:
    for name, array in arrays.items():
        if array is not None and not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise TypeError(f"{name} must be floating point, got {jnp.result_type(array)}")


def _check_not_empty(inputs, kernel) -> None:
    if 0 in inputs.shape or 0 in kernel.shape:
        raise ValueError(f"inputs and kernel must not be empty, got {inputs.shape}, {kernel.shape}")
