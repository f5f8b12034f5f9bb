"""1x1 convolution: the public function, its equation, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxnets.kernels import dispatch
from jaxnets.kernels.checks import as_floats, as_int, as_sizes
from jaxnets.kernels.meshes import WHOLE, over_rows
from jaxnets.kernels.numerics import accumulator_dtype, result_dtype
from jaxnets.kernels.pallas.contract import PallasOptions
from jaxnets.kernels.pointwise import pallas, reference
from jaxnets.kernels.pointwise.activations import ACTIVATIONS, ActivationName
from jaxnets.kernels.pointwise.checks import check_arrays, check_epilogue, optional_floats
from jaxnets.kernels.pointwise.xla import (
    MANY_GROUPS,
    apply_grouped,
    apply_kernel,
    grouped_gradients,
    kernel_gradient,
    tiled_gradients,
    wants_tiles,
)


def _plain(backend: dispatch.Obstacle) -> dispatch.Obstacle:
    def obstacle(where: dispatch.Target, dtype: Any, sizes: Mapping[str, Any]) -> str | None:
        if sizes["channels_first"]:
            return "the kernel takes channels last, got channels_first"
        if sizes["groups"] > 1:
            return f"the kernel takes one group, got groups = {sizes['groups']}"
        return backend(where, dtype, sizes)

    return obstacle


OPERATION = dispatch.register(
    dispatch.Operation(
        "pointwise_conv",
        ("positions", "features", "out", "groups", "channels_first"),
        {
            "matmul": dispatch.anywhere,
            "reference": dispatch.anywhere,
            "pallas": _plain(dispatch.pallas_obstacle),
            "mosaic_gpu": _plain(dispatch.mosaic_gpu_obstacle),
        },
        {"groups": 1, "channels_first": False},
    )
)


def pointwise_conv(
    inputs: Float[ArrayLike, " batch *positions_and_in"],
    kernel: Float[ArrayLike, "in_per_group out"],
    bias: Float[ArrayLike, " out"] | None = None,
    *,
    residual: Float[ArrayLike, " batch *positions_and_out"] | None = None,
    activation: ActivationName | None = None,
    strides: SupportsIndex | Iterable[SupportsIndex] = 1,
    groups: SupportsIndex = 1,
    channels_first: bool = False,
    implementation: Literal["matmul", "reference", "pallas", "mosaic_gpu"] | None = None,
) -> Float[Array, " batch *positions_and_out"]:
    r"""A convolution whose window is one position: a matmul over the channels.

    .. math::
        y_{b, p, o} = a \Big( \sum_i x_{b, s p, i} W_{i o} + b_o + r_{b, p, o} \Big)

    ("Network in network", Lin et al. 2014, section 3.1.) Bias, residual and activation are fused
    behind the matmul; for relu, sigmoid and tanh the backward keeps nothing but inputs and outputs.

    Args:
      inputs: [batch, ..., in] with any number of spatial axes (time; height, width; ...), or
        [batch, in, ...] with ``channels_first``; float.
      kernel: [in // groups, out].
      bias: [out], or None.
      residual: of the output's shape, added before the activation (He et al. 2016, figure 2).
      activation: None, "relu", "sigmoid", "tanh", "silu", "gelu" (its tanh form, as
        ``jax.nn.gelu`` has it) or "gelu_exact" (what PyTorch and Keras call "gelu").
      strides: positions from one output to the next, one integer or one for each spatial axis.
      groups: of the input's and of the output's channels; a group sees only its own.
      channels_first: the layout of inputs, residual and outputs. Neither layout copies its arrays.
      implementation: "matmul", on XLA, has reverse-mode derivatives; "reference", an einsum, also
        has forward mode; "pallas", the forward in one kernel, needs a GPU or TPU, channels last and
        one group, and "mosaic_gpu" of these a Hopper or Blackwell GPU and 16 bits. None is
        "matmul", unless the tuner measured another to be faster.

    Returns:
      [batch, ..., out] (or [batch, out, ...]), each spatial axis divided by its stride, rounded up,
      in the dtype of inputs and kernel; accumulated in float32 (float64 for float64).

    Raises:
      TypeError: an array is not of floats, or a size no integer.
      ValueError: shapes that do not fit (a swapped layout is named), an unknown option, or an
        implementation that cannot run here.

    Example:
      >>> import jax.numpy as jnp
      >>> images = jnp.ones((2, 5, 5, 3))
      >>> outputs = pointwise_conv(images, jnp.ones((3, 8)), jnp.ones(8), activation="relu")
      >>> outputs.shape, float(outputs[0, 0, 0, 0])
      ((2, 5, 5, 8), 4.0)
      >>> pointwise_conv(images, jnp.ones((3, 8)), strides=2).shape
      (2, 3, 3, 8)
      >>> pointwise_conv(jnp.ones((2, 3, 5, 5)), jnp.ones((3, 8)))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      ValueError: inputs must be [batch, ..., in] with in = kernel.shape[0] * groups = 3, got ...
    """
    inputs, kernel = as_floats("inputs", inputs), as_floats("kernel", kernel)
    bias = optional_floats("bias", bias)
    residual = optional_floats("residual", residual)
    groups = as_int("groups", groups)
    check_arrays(inputs, kernel, bias, groups, channels_first=channels_first)
    each = as_sizes("strides", strides, inputs.ndim - 2)
    start = 2 if channels_first else 1
    spatial = inputs.shape[start : start + len(each)]
    positions = tuple(-(-size // stride) for size, stride in zip(spatial, each, strict=True))
    channels = kernel.shape[1:]
    shape = (*channels, *positions) if channels_first else (*positions, *channels)
    check_epilogue(activation, residual, (inputs.shape[0], *shape))
    sizes = {
        "positions": inputs.shape[0] * math.prod(positions), "features": kernel.shape[0] * groups,
        "out": kernel.shape[1], "groups": groups, "channels_first": channels_first,
    }  # fmt: skip
    dtype = result_dtype(inputs, kernel)
    choice = dispatch.choose(OPERATION, dtype, sizes, implementation)
    plain = groups == 1 and not channels_first
    on_cpu = choice.target.platform == "cpu"
    options = _Options(
        activation,
        each,
        groups,
        channels_first,
        choice.implementation,
        PallasOptions.of(choice),
        as_rows=on_cpu or not plain or choice.implementation in dispatch.PALLAS,
        may_tile=on_cpu and plain,
    )
    return _pointwise_conv(options, inputs, kernel, bias, residual)


class _Options(NamedTuple):
    """What is static of a call."""

    activation: str | None
    strides: tuple[int, ...]
    groups: int
    channels_first: bool
    implementation: str
    fused: PallasOptions | None  # by Pallas
    as_rows: bool  # the spatial axes as one
    may_tile: bool  # the backward, on a CPU


@partial(jax.jit, static_argnums=0)
@jax.named_scope("pointwise_conv")
@over_rows(inputs=0, kernel=WHOLE, bias=WHOLE, residual=0)
def _pointwise_conv(
    options: _Options,
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> jax.Array:
    dtype = result_dtype(inputs, kernel)
    if options.implementation == "reference":
        return _reference(options, inputs, kernel, bias, residual).astype(dtype)
    strided = _subsample(options, inputs)
    outputs = _convolve(
        options, _flat(options, strided).astype(dtype), kernel.astype(dtype), bias,
        None if residual is None else _flat(options, residual),
    )  # fmt: skip
    channels = kernel.shape[1]
    if options.channels_first:
        return outputs.reshape(inputs.shape[0], channels, *strided.shape[2:])
    return outputs.reshape(*strided.shape[:-1], channels)


def _reference(
    options: _Options,
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> jax.Array:
    wide = accumulator_dtype(inputs, kernel)
    if options.channels_first:
        inputs = jnp.moveaxis(inputs, 1, -1)
        residual = None if residual is None else jnp.moveaxis(residual, 1, -1)
    inputs, kernel = inputs.astype(wide), kernel.astype(wide)
    bias, residual = (None if a is None else a.astype(wide) for a in (bias, residual))
    outputs = reference.pointwise_conv(
        inputs, kernel, bias, residual, options.strides, options.groups, options.activation
    )
    return jnp.moveaxis(outputs, -1, 1) if options.channels_first else outputs


def _subsample(options: _Options, inputs: jax.Array) -> jax.Array:
    """The positions that the outputs look at; its gradient pads with zeros."""
    if set(options.strides) <= {1}:
        return inputs
    spatial = tuple(slice(None, None, stride) for stride in options.strides)
    every = slice(None)
    return inputs[(every, every, *spatial) if options.channels_first else (every, *spatial)]


def _flat(options: _Options, array: jax.Array) -> jax.Array:
    """The spatial axes as one: [batch, positions, channels] or [batch, channels, positions]."""
    if not options.as_rows:
        return array
    if options.channels_first:
        return array.reshape(*array.shape[:2], math.prod(array.shape[2:]))
    return array.reshape(array.shape[0], math.prod(array.shape[1:-1]), array.shape[-1])


def _layout(options: _Options) -> dict[str, bool]:
    return {"channels_first": options.channels_first, "as_rows": options.as_rows}


def _channels(options: _Options) -> int:
    return 1 if options.channels_first else -1


def _split(options: _Options, array: jax.Array, axis: int) -> list[jax.Array]:
    return [array] if options.groups == 1 else jnp.split(array, options.groups, axis)


def _join(parts: list[jax.Array], axis: int) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(
    options: _Options,
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> jax.Array:
    return _forward(options, inputs, kernel, bias, residual)[0]


def _forward(
    options: _Options,
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """The outputs, and what the activation's slope is told by (None without an activation)."""
    if options.fused is not None and inputs.size:  # a kernel of no positions has no grid
        return pallas.forward(options.fused, options.activation, inputs, kernel, bias, residual)
    axis, layout = _channels(options), _layout(options)
    if options.groups >= MANY_GROUPS:
        first = options.channels_first
        total = apply_grouped(inputs, kernel, options.groups, channels_first=first)
    else:
        pairs = zip(_split(options, inputs, axis), _split(options, kernel, 1), strict=True)
        total = _join([apply_kernel(x, w, **layout) for x, w in pairs], axis)
    if bias is not None:
        shape = [1] * total.ndim
        shape[axis] = -1
        total = total + bias.astype(total.dtype).reshape(shape)
    if residual is not None:
        total = total + residual.astype(total.dtype)
    if options.activation is None:
        return total.astype(inputs.dtype), None
    activation = ACTIVATIONS[options.activation]
    outputs = activation.function(total).astype(inputs.dtype)
    return outputs, outputs if activation.keeps_output else total.astype(inputs.dtype)


def _convolve_forward(
    options: _Options,
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    outputs, kept = _forward(options, inputs, kernel, bias, residual)
    # Gradients have the dtypes of what they belong to; of bias and residual nothing else is kept.
    empty = [None if a is None else jnp.empty(0, a.dtype) for a in (bias, residual)]
    return outputs, (inputs, kernel, kept, *empty)


def _convolve_backward(
    options: _Options, kept_arrays: tuple, gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    inputs, kernel, kept, bias, residual = kept_arrays
    if options.activation is not None:
        wide = accumulator_dtype(gradient)
        slope = ACTIVATIONS[options.activation].slope(kept.astype(wide)).astype(wide)
        gradient = (gradient.astype(wide) * slope).astype(gradient.dtype)
    tiled = options.may_tile and wants_tiles(inputs, gradient)
    gradients = (
        tiled_gradients(inputs, kernel, gradient)
        if tiled
        else _whole(options, inputs, kernel, gradient)
    )
    return (
        gradients[0].astype(inputs.dtype),
        gradients[1].astype(kernel.dtype),
        None if bias is None else gradients[2].astype(bias.dtype),
        None if residual is None else gradient.astype(residual.dtype),
    )


def _whole(
    options: _Options, inputs: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of inputs, kernel and bias; XLA drops that of a bias that is not there."""
    axis, layout = _channels(options), _layout(options)
    positions = (0, 2) if options.channels_first else tuple(range(gradient.ndim - 1))
    d_bias = gradient.sum(positions, dtype=accumulator_dtype(gradient))
    if options.groups >= MANY_GROUPS:
        first = options.channels_first
        both = grouped_gradients(inputs, kernel, gradient, options.groups, channels_first=first)
        return *both, d_bias
    parts = (
        _split(options, inputs, axis),
        _split(options, kernel, 1),
        _split(options, gradient, axis),
    )
    triples = list(zip(*parts, strict=True))
    d_inputs = _join([apply_kernel(g, w.T, **layout) for _, w, g in triples], axis)
    d_kernel = _join([kernel_gradient(x, g, **layout) for x, _, g in triples], 1)
    return d_inputs, d_kernel, d_bias


_convolve.defvjp(_convolve_forward, _convolve_backward)
