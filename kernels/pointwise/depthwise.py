"""Depthwise convolution: each channel by its own window, as a sum of shifted products."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxnets.kernels.pointwise.arguments import check_depthwise, per_axis

IMPLEMENTATIONS = ("shifts", "convolution")


def depthwise_conv(
    inputs: Float[Array, "batch *positions_and_channels"],
    kernel: Float[Array, "*window_and_channels"],
    *,
    strides: int | Sequence[int] = 1,
    padding: str = "SAME",
    implementation: str | None = None,
) -> Float[Array, "batch *outputs_and_channels"]:
    r"""A convolution that mixes positions and no channels.

    .. math:: y_{b, p, c} = \sum_t x_{b, s p + t - l, c} \, K_{t c}

    with :math:`l` the padding before the first position (MobileNets, Howard et al. 2017, equation
    3). A 1x1 convolution behind it makes the depthwise-separable block.

    Args:
      inputs: [batch, ..., channels], float; one to three spatial axes as the kernel has.
      kernel: [*window, channels].
      strides: one integer, or one for each spatial axis.
      padding: "SAME" (outputs = inputs / strides, rounded up; zeros around) or "VALID".
      implementation: "shifts", an elementwise sum over the window, with its own backward;
        "convolution", XLA's. None: "shifts" on CPU, where XLA has no kernel for it, and
        "convolution" elsewhere.

    Returns:
      [batch, ..., channels] in the dtype of inputs and kernel, accumulated in float32 (float64).

    Raises:
      TypeError: an array is not of floats.
      ValueError: shapes that do not fit, or an unknown option.

    Example:
      >>> import jax.numpy as jnp
      >>> outputs = depthwise_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2)))
      >>> outputs.shape, float(outputs[0, 0, 0, 0]), float(outputs[0, 1, 1, 0])
      ((1, 4, 4, 2), 4.0, 9.0)
    """
    check_depthwise(inputs, kernel)
    window = kernel.shape[:-1]
    each = per_axis(strides, len(window))
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"padding must be 'SAME' or 'VALID', got {padding!r}")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"implementation must be None or one of {IMPLEMENTATIONS}, got {implementation!r}"
        )
    around = tuple(lax.padtype_to_pads(inputs.shape[1:-1], window, each, padding))
    if any(
        size + sum(pads) < width
        for size, pads, width in zip(inputs.shape[1:-1], around, window, strict=True)
    ):
        raise ValueError(
            f"inputs must be at least as large as the window {window} without padding, "
            f"got shape {inputs.shape}"
        )
    if implementation is None:
        implementation = "shifts" if jax.default_backend() == "cpu" else "convolution"
    return _depthwise_conv(_Call(each, around, implementation), inputs, kernel)


class _Call(NamedTuple):
    """What is static of a call."""

    strides: tuple[int, ...]
    around: tuple[tuple[int, int], ...]
    implementation: str


@partial(jax.jit, static_argnums=0)
@jax.named_scope("depthwise_conv")
def _depthwise_conv(call: _Call, inputs, kernel):
    dtype = jnp.result_type(inputs, kernel)
    wide = jnp.promote_types(dtype, jnp.float32)
    if call.implementation == "shifts":
        return _shifts(call, inputs.astype(wide), kernel.astype(wide)).astype(dtype)
    spatial = "DHW"[3 - len(call.strides) :]
    layout = f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"
    return lax.conv_general_dilated(
        inputs.astype(dtype), jnp.expand_dims(kernel, -2).astype(dtype), call.strides,
        call.around, dimension_numbers=layout, feature_group_count=kernel.shape[-1],
    )  # fmt: skip


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _shifts(call: _Call, inputs, kernel):
    return _correlate(_pad(inputs, call.around), kernel, call.strides)


def _shifts_forward(call: _Call, inputs, kernel):
    return _shifts(call, inputs, kernel), (inputs, kernel)


def _shifts_backward(call: _Call, kept, gradient):
    inputs, kernel = kept
    axes = tuple(range(len(call.strides)))
    # The inputs' gradient is the same sum over the flipped window, of the gradient spread out by
    # the strides and padded until it has one place for each input.
    around = []
    for size, width, stride, (low, _), count in zip(
        inputs.shape[1:-1], kernel.shape[:-1], call.strides, call.around, gradient.shape[1:-1],
        strict=True,
    ):  # fmt: skip
        spread = (count - 1) * stride + 1
        around.append((width - 1 - low, size + low - spread))
    spread = _pad(gradient, around, [stride - 1 for stride in call.strides])
    inputs_gradient = _correlate(spread, jnp.flip(kernel, axes), (1,) * len(axes))

    # One image at a time, so that the reductions of the whole window find it in the cache.
    def add_image(total, image):
        padded, gradient = image
        parts = [
            (tap * gradient).sum(axes)
            for _, tap in _taps(padded, kernel.shape[:-1], call.strides, gradient.shape[:-1])
        ]
        return total + jnp.stack(parts), None

    start = jnp.zeros((kernel[..., 0].size, kernel.shape[-1]), gradient.dtype)
    images = _pad(inputs, call.around), gradient
    kernel_gradient, _ = lax.scan(add_image, start, images)
    return inputs_gradient, kernel_gradient.reshape(kernel.shape)


_shifts.defvjp(_shifts_forward, _shifts_backward)


def _pad(array, around, between=None):
    between = between or [0] * len(around)
    spatial = [(*pads, gap) for pads, gap in zip(around, between, strict=True)]
    return lax.pad(array, jnp.zeros((), array.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


def _taps(padded, window, strides, outputs):
    """For each place in the window: that place, and the inputs [..., *outputs, channels] there."""
    every = padded.shape[: -1 - len(window)]
    for place in itertools.product(*map(range, window)):
        limits = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(place, outputs, strides, strict=True)
        ]
        yield (
            place,
            lax.slice(
                padded,
                (*(0 for _ in every), *place, 0),
                (*every, *limits, padded.shape[-1]),
                (*(1 for _ in every), *strides, 1),
            ),
        )


def _correlate(padded, kernel, strides):
    window = kernel.shape[:-1]
    outputs = [
        (size - width) // stride + 1
        for size, width, stride in zip(padded.shape[1:-1], window, strides, strict=True)
    ]
    products = [tap * kernel[place] for place, tap in _taps(padded, window, strides, outputs)]
    return sum(products[1:], products[0])
