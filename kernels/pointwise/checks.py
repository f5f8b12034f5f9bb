"""Checks of what a 1x1 convolution is given, at trace time and in one place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax

from jaxnets.kernels.checks import as_floats, as_int, as_sizes
from jaxnets.kernels.pointwise.activations import ACTIVATIONS


def optional_floats(name: str, values: Any) -> jax.Array | None:
    """``values`` as an array of floats, or None."""
    return None if values is None else as_floats(name, values)


def check_arrays(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    groups: int,
    *,
    channels_first: bool,
) -> None:
    """Raise unless ``inputs`` fit ``kernel [in // groups, out]`` and ``bias [out]``."""
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
    _check_kernel_not_empty(kernel)
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias must be [out] = {kernel.shape[1:]}, got shape {bias.shape}")


def check_epilogue(
    activation: str | None, residual: jax.Array | None, shape: tuple[int, ...]
) -> None:
    """Raise unless ``activation`` is known and ``residual`` has the output's shape."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be None or one of {tuple(ACTIVATIONS)}, got {activation!r}"
        )
    if residual is None:
        return
    if residual.shape != shape:
        raise ValueError(f"residual must have the output's shape {shape}, got {residual.shape}")


def check_depthwise(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, multiplier: int
) -> None:
    """Raise unless ``inputs [batch, ..., channels]`` fit the kernel of :func:`depthwise_conv`."""
    axes = inputs.ndim - 2
    if not 1 <= axes <= 3:
        raise ValueError(
            f"inputs must be [batch, ..., channels] with 1 to 3 spatial axes, got {inputs.shape}"
        )
    channels = inputs.shape[-1]
    wanted = [(channels * multiplier,), (channels, multiplier)]
    if kernel.ndim <= axes or kernel.shape[axes:] not in wanted[: 1 if multiplier == 1 else 2]:
        forms = " or ".join(f"[*window, {', '.join(map(str, shape))}]" for shape in wanted)
        hint = ""
        if multiplier == 1 and kernel.ndim == axes + 2 and kernel.shape[axes] == channels:
            hint = f"; for several outputs a channel say depth_multiplier={kernel.shape[-1]}"
        raise ValueError(
            f"kernel must be {forms} with {axes} axes of the window, as inputs "
            f"[batch, ..., channels] = {inputs.shape} and depth_multiplier = {multiplier} have "
            f"it, got shape {kernel.shape}{hint}"
        )
    _check_kernel_not_empty(kernel)
    if bias is not None and bias.shape != wanted[0]:
        raise ValueError(f"bias must be [channels * multiplier] = {wanted[0]}, got {bias.shape}")


def pads_of(
    padding: Any,
    spatial: tuple[int, ...],
    window: tuple[int, ...],
    strides: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    """How many zeros stand before and behind each spatial axis.

    ``padding`` is "SAME", "VALID", "CAUSAL" (one spatial axis: all of it in front), or numbers: one
    for all sides, or for each axis one or a pair.
    """
    spans = [(size - 1) * spread + 1 for size, spread in zip(window, dilation, strict=True)]
    if isinstance(padding, str):
        if padding == "VALID":
            return ((0, 0),) * len(spans)
        if padding == "CAUSAL" and len(spans) == 1:
            return ((spans[0] - 1, 0),)
        if padding != "SAME":
            raise ValueError(
                "padding must be 'SAME', 'VALID', 'CAUSAL' (for one spatial axis) or numbers, "
                f"got {padding!r} for {len(spans)} spatial axes"
            )
        pads = []
        for size, span, stride in zip(spatial, spans, strides, strict=True):
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            pads.append((total // 2, total - total // 2))
        return tuple(pads)
    if not isinstance(padding, Iterable) or not getattr(padding, "ndim", 1):
        side = as_int("padding", padding, 0)
        return ((side, side),) * len(spans)
    padding = list(padding)
    if len(padding) != len(spans):
        raise ValueError(
            f"padding must have a number or a pair for each of the {len(spans)} spatial axes, "
            f"got {padding!r}"
        )
    pairs = (as_sizes("padding", each, 2, lowest=0) for each in padding)
    return tuple((low, high) for low, high in pairs)


def _check_kernel_not_empty(kernel: jax.Array) -> None:
    if 0 in kernel.shape:
        raise ValueError(f"kernel must not be empty, got shape {kernel.shape}")
