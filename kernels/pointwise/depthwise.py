"""Depthwise convolution: each channel by its own window, as a sum of shifted products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from jaxnets.kernels.checks import as_floats, as_int, as_sizes
from jaxnets.kernels.meshes import WHOLE, over_rows
from jaxnets.kernels.numerics import accumulator_dtype, result_dtype
from jaxnets.kernels.pointwise.checks import check_depthwise, optional_floats, pads_of

IMPLEMENTATIONS = ("shifts", "convolution")


def depthwise_conv(
    inputs: Float[ArrayLike, " batch *positions_and_channels"],
    kernel: Float[ArrayLike, "*window_and_channels"],
    bias: Float[ArrayLike, " outputs"] | None = None,
    *,
    depth_multiplier: SupportsIndex = 1,
    strides: SupportsIndex | Iterable[SupportsIndex] = 1,
    padding: str | SupportsIndex | Sequence = "SAME",
    dilation: SupportsIndex | Iterable[SupportsIndex] = 1,
    channels_first: bool = False,
    implementation: Literal["shifts", "convolution"] | None = None,
) -> Float[Array, " batch *outputs_and_channels"]:
    r"""A convolution that mixes positions and no channels.

    .. math:: y_{b, p, c m} = \sum_t x_{b, s p + d t - l, c} \, K_{t c m} + b_{c m}

    with stride s, dilation d and :math:`l` the padding before the first position (MobileNets,
    Howard et al. 2017, equation 3; dilation: Yu and Koltun 2016, section 2). A 1x1 convolution
    behind it makes the depthwise-separable block.

    Args:
      inputs: [batch, ..., channels], float, with one to three spatial axes; or [batch, channels,
        ...] with ``channels_first``.
      kernel: ``[*window, channels]``; with ``depth_multiplier`` also
        ``[*window, channels, multiplier]`` (Keras) or ``[*window, channels * multiplier]`` (flax),
        which are the same numbers.
      bias: [channels * multiplier], or None.
      depth_multiplier: outputs of each channel; they stand beside each other.
      strides: one integer, or one for each spatial axis.
      padding: "SAME" (outputs = inputs / strides, rounded up; zeros around, the odd one behind, as
        TensorFlow and flax have it), "VALID", "CAUSAL" (one spatial axis: an output sees nothing
        behind itself), or numbers: one for all sides (as PyTorch has it), or for each spatial axis
        one or a pair.
      dilation: positions from one place of the window to the next, one integer or one for each
        spatial axis.
      channels_first: the layout of inputs and outputs; it costs two transposes.
      implementation: "shifts", an elementwise sum over the window, with its own backward;
        "convolution", XLA's. None: on CPU "shifts" for windows of up to 64 places (128 in two or
        three axes), else, and on other platforms, "convolution".

    Returns:
      [batch, ..., channels * multiplier] in the dtype of inputs and kernel, accumulated in float32
      (float64).

    Raises:
      TypeError: an array is not of floats, or a size no integer.
      ValueError: shapes that do not fit, or an unknown option.

    Example:
      >>> import jax.numpy as jnp
      >>> outputs = depthwise_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2)))
      >>> outputs.shape, float(outputs[0, 0, 0, 0]), float(outputs[0, 1, 1, 0])
      ((1, 4, 4, 2), 4.0, 9.0)
      >>> depthwise_conv(jnp.ones((1, 9, 2)), jnp.ones((3, 8)), depth_multiplier=4).shape
      (1, 9, 8)
    """
    inputs, kernel = as_floats("inputs", inputs), as_floats("kernel", kernel)
    bias = optional_floats("bias", bias)
    if channels_first and inputs.ndim > 2:
        inputs = jnp.moveaxis(inputs, 1, -1)
    check_depthwise(inputs, kernel, bias, as_int("depth_multiplier", depth_multiplier, 1))
    axes = inputs.ndim - 2
    window, spatial = kernel.shape[:axes], inputs.shape[1:-1]
    each, spread = as_sizes("strides", strides, axes), as_sizes("dilation", dilation, axes)
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"implementation must be None or one of {IMPLEMENTATIONS}, got {implementation!r}"
        )
    around = pads_of(padding, spatial, window, each, spread)
    spans = [(width - 1) * gap + 1 for width, gap in zip(window, spread, strict=True)]
    if any(
        size > 0 and size + sum(pads) < span
        for size, pads, span in zip(spatial, around, spans, strict=True)
    ):
        raise ValueError(
            f"inputs must be at least as large as the window {tuple(spans)} without padding, "
            f"got shape {inputs.shape}"
        )
    if implementation is None:
        few = math.prod(window) <= (_MOST_SHIFTS if axes > 1 else _MOST_SHIFTS // 2)
        on_cpu = jax.default_backend() == "cpu"
        implementation = "shifts" if on_cpu and few else "convolution"
    options = _Options(each, spread, around, implementation)
    outputs = _depthwise_conv(options, inputs, kernel, bias)
    return jnp.moveaxis(outputs, -1, 1) if channels_first else outputs


# Measured on two cores, with the gradient, shifts / XLA's convolution: 3x3 0.13, 7x7 0.26, 11x11
# 0.87 (forward alone 0.11); 31 places of time 0.15, 64 0.21, 128 1.2. Compiling the shifts takes 5
# seconds at 128 places, and grows faster than they do; the convolution always 0.15.
_MOST_SHIFTS = 128


class _Options(NamedTuple):
    """What is static of a call."""

    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    around: tuple[tuple[int, int], ...]
    implementation: str


@partial(jax.jit, static_argnums=0)
@jax.named_scope("depthwise_conv")
@over_rows(inputs=0, kernel=WHOLE, bias=WHOLE)
def _depthwise_conv(
    options: _Options, inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    dtype, wide = result_dtype(inputs, kernel), accumulator_dtype(inputs, kernel)
    axes, channels = len(options.strides), inputs.shape[-1]
    outputs = math.prod(kernel.shape[axes:])
    if 0 in inputs.shape:
        spatial = [
            max(0, (size + sum(pads) - (width - 1) * gap - 1) // stride + 1) if size else 0
            for size, pads, width, gap, stride in zip(
                inputs.shape[1:-1], options.around, kernel.shape, options.dilation, options.strides,
                strict=False,
            )
        ]  # fmt: skip
        return jnp.zeros((inputs.shape[0], *spatial, outputs), dtype)
    kernel = kernel.reshape(*kernel.shape[:axes], outputs)
    if options.implementation == "shifts":
        if outputs > channels:
            inputs = jnp.repeat(inputs, outputs // channels, axis=-1)
        found = _shifts(options, inputs.astype(wide), kernel.astype(wide))
    else:
        letters = "DHW"[3 - axes :]
        found = lax.conv_general_dilated(
            inputs.astype(dtype), jnp.expand_dims(kernel, -2).astype(dtype), options.strides,
            options.around, rhs_dilation=options.dilation,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=channels,
        )  # fmt: skip
    if bias is not None:
        found = found.astype(wide) + bias.astype(wide).reshape((1,) * (axes + 1) + (outputs,))
    return found.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _shifts(options: _Options, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return _correlate(_pad(inputs, options.around), kernel, options.strides, options.dilation)


def _shifts_forward(
    options: _Options, inputs: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple]:
    return _shifts(options, inputs, kernel), (inputs, kernel)


def _shifts_backward(
    options: _Options, kept: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = kept
    axes = tuple(range(len(options.strides)))
    # The inputs' gradient is the same sum over the flipped window, of the gradient spread out by
    # the strides and padded until it has one place for each input.
    around = []
    for size, width, gap, stride, (low, _), count in zip(
        inputs.shape[1:-1], kernel.shape[:-1], options.dilation, options.strides, options.around,
        gradient.shape[1:-1], strict=True,
    ):  # fmt: skip
        spread = (count - 1) * stride + 1
        around.append(((width - 1) * gap - low, size + low - spread))
    spread = _pad(gradient, around, [stride - 1 for stride in options.strides])
    flipped = jnp.flip(kernel, axes)
    inputs_gradient = _correlate(spread, flipped, (1,) * len(axes), options.dilation)

    # One image at a time, so that the reductions of the whole window find it in the cache.
    def add_image(total, image):
        padded, gradient = image
        parts = [
            (tap * gradient).sum(axes)
            for _, tap in _taps(
                padded, kernel.shape[:-1], options.strides, options.dilation, gradient.shape[:-1]
            )
        ]
        return total + jnp.stack(parts), None

    start = jnp.zeros((kernel[..., 0].size, kernel.shape[-1]), gradient.dtype)
    images = _pad(inputs, options.around), gradient
    kernel_gradient, _ = lax.scan(add_image, start, images)
    return inputs_gradient, kernel_gradient.reshape(kernel.shape)


_shifts.defvjp(_shifts_forward, _shifts_backward)


def _pad(
    array: jax.Array, around: Sequence[tuple[int, int]], between: list[int] | None = None
) -> jax.Array:
    between = between or [0] * len(around)
    spatial = [(*pads, gap) for pads, gap in zip(around, between, strict=True)]
    return lax.pad(array, jnp.zeros((), array.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


def _taps(
    padded: jax.Array,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    dilation: tuple[int, ...],
    outputs: Sequence[int],
) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """For each place in the window: that place, and the inputs [..., *outputs, channels] there."""
    every = padded.shape[: -1 - len(window)]
    for place in itertools.product(*map(range, window)):
        starts = [at * gap for at, gap in zip(place, dilation, strict=True)]
        limits = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(starts, outputs, strides, strict=True)
        ]
        yield (
            place,
            lax.slice(
                padded,
                (*(0 for _ in every), *starts, 0),
                (*every, *limits, padded.shape[-1]),
                (*(1 for _ in every), *strides, 1),
            ),
        )


def _correlate(
    padded: jax.Array, kernel: jax.Array, strides: tuple[int, ...], dilation: tuple[int, ...]
) -> jax.Array:
    window = kernel.shape[:-1]
    outputs = [
        (size - (width - 1) * gap - 1) // stride + 1
        for size, width, gap, stride in zip(
            padded.shape[1:-1], window, dilation, strides, strict=True
        )
    ]
    taps = _taps(padded, window, strides, dilation, outputs)
    products = [tap * jnp.expand_dims(kernel[place], range(padded.ndim - 1)) for place, tap in taps]
    return sum(products[1:], products[0])
