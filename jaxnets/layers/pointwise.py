"""1x1 convolution modules: the layer itself, and the depthwise-separable block built on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxnets.kernels import depthwise_conv, fold_batch_norm, pointwise_conv
from jaxnets.kernels.checks import as_int
from jaxnets.kernels.pointwise.activations import ActivationName
from jaxnets.layers.initial import as_computed, computing_dtype, draw, float_dtype


class PointwiseConv(nnx.Module):
    """A 1x1 convolution over any number of spatial axes, with bias, residual and activation fused.

    Args:
      in_features, out_features: channels.
      strides: one integer, or one for each spatial axis.
      groups: of the channels; a group sees only its own.
      use_bias: add a bias.
      activation: None, "relu", "sigmoid", "tanh", "silu", "gelu" (its tanh form) or "gelu_exact"
        (what PyTorch and Keras call "gelu").
      channels_first: inputs and outputs are [batch, channels, ...] in place of [batch, ...,
        channels].
      dtype: computed in, inputs and parameters cast to it; None: the wider of the two, as flax.
      param_dtype: of the parameters.
      rngs: for the kernel, which starts as LeCun-normal.

    Raises:
      TypeError: sizes that are not integers, a dtype that is not floating point.
      ValueError: sizes below 1, or groups that do not divide the channels.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> layer = PointwiseConv(3, 8, activation="relu", rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 5, 5, 3))).shape
      (2, 5, 5, 8)

      In linen, any method by its name:

      >>> linen = nnx.bridge.to_linen(PointwiseConv, 3, out_features=8)
      >>> variables = linen.init(jax.random.key(0), jnp.ones((2, 5, 5, 3)))
      >>> linen.apply(variables, jnp.ones((2, 5, 5, 3))).shape
      (2, 5, 5, 8)
      >>> norm = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
      >>> linen.apply(variables, norm, nnx_method="fold").kernel.shape
      (3, 8)
    """

    def __init__(
        self,
        in_features: SupportsIndex,
        out_features: SupportsIndex,
        *,
        strides: SupportsIndex | Iterable[SupportsIndex] = 1,
        groups: SupportsIndex = 1,
        use_bias: bool = True,
        activation: ActivationName | None = None,
        channels_first: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        in_features = as_int("in_features", in_features, 1)
        out_features = as_int("out_features", out_features, 1)
        groups, param_dtype = as_int("groups", groups), float_dtype("param_dtype", param_dtype)
        self.dtype = computing_dtype(dtype)
        if groups < 1 or in_features % groups or out_features % groups:
            raise ValueError(
                f"groups must divide in_features and out_features, got {groups} with "
                f"{in_features} and {out_features}"
            )
        shape = (in_features // groups, out_features)
        self.kernel = nnx.Param(draw(nnx.initializers.lecun_normal(), rngs, shape, param_dtype))
        self.bias = nnx.Param(jnp.zeros(out_features, param_dtype)) if use_bias else None
        self.strides = _one_or_each("strides", strides)
        self.groups, self.activation = groups, activation
        self.channels_first = channels_first

    def __call__(
        self,
        inputs: Float[Array, " batch *positions_and_in"],
        residual: Float[Array, " batch *positions_and_out"] | None = None,
    ) -> Float[Array, " batch *positions_and_out"]:
        """As :func:`jaxnets.kernels.pointwise_conv`."""
        bias = None if self.bias is None else self.bias[...]
        inputs, kernel, bias, residual = as_computed(
            self.dtype, (inputs, self.kernel[...], bias, residual)
        )
        return pointwise_conv(
            inputs, kernel, bias, residual=residual, activation=self.activation,
            strides=self.strides, groups=self.groups, channels_first=self.channels_first,
        )  # fmt: skip

    def fold(self, norm: nnx.BatchNorm) -> PointwiseConv:
        """This layer and ``norm`` behind it as one layer, for inference.

        The activation is then behind both, so the layer here must have none: in training the block
        is ``activation(norm(layer(inputs)))``. Set ``activation`` of what is returned.

        Raises:
          ValueError: the layer has an activation, or ``norm`` another number of channels.
        """
        if self.activation is not None:
            raise ValueError(
                f"activation must be None to fold what stands behind it, got {self.activation!r}"
            )
        kernel, bias = fold_batch_norm(
            self.kernel[...],
            None if self.bias is None else self.bias[...],
            norm.mean[...],
            norm.var[...],
            None if norm.scale is None else norm.scale[...],
            None if norm.bias is None else norm.bias[...],
            epsilon=norm.epsilon,
        )
        folded = PointwiseConv(
            kernel.shape[0] * self.groups, kernel.shape[1], strides=self.strides,
            groups=self.groups, channels_first=self.channels_first, dtype=self.dtype,
            rngs=nnx.Rngs(0),
        )  # fmt: skip
        folded.kernel, folded.bias = nnx.Param(kernel), nnx.Param(bias)
        return folded


class SeparableConv(nnx.Module):
    """A convolution of each channel by itself, then a 1x1 convolution over the channels.

    MobileNets, Howard et al. 2017, section 3.1: k*k + out products an input value in place of
    k*k*out. Bias and activation stand behind the 1x1 convolution.

    Args:
      in_features, out_features: channels.
      kernel_size: the window, one size for each spatial axis; an integer is one axis, as in flax.
      depth_multiplier, strides, padding, dilation: of the window, as
        :func:`jaxnets.kernels.depthwise_conv` has them.
      use_bias, activation: as :class:`PointwiseConv` has them.
      channels_first: inputs and outputs are [batch, channels, ...] in place of [batch, ...,
        channels].
      dtype: computed in, inputs and parameters cast to it; None: the wider of the two, as flax.
      param_dtype: of the parameters.
      rngs: for the kernels.

    Raises:
      TypeError, ValueError: as :class:`PointwiseConv`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> layer = SeparableConv(3, 8, (3, 3), strides=2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 6, 6, 3))).shape
      (2, 3, 3, 8)

      In linen:

      >>> linen = nnx.bridge.to_linen(
      ...     SeparableConv, 3, out_features=8, kernel_size=(3, 3), strides=2
      ... )
      >>> variables = linen.init(jax.random.key(0), jnp.ones((2, 6, 6, 3)))
      >>> linen.apply(variables, jnp.ones((2, 6, 6, 3))).shape
      (2, 3, 3, 8)
    """

    def __init__(
        self,
        in_features: SupportsIndex,
        out_features: SupportsIndex,
        kernel_size: SupportsIndex | Iterable[SupportsIndex],
        *,
        depth_multiplier: SupportsIndex = 1,
        strides: SupportsIndex | Iterable[SupportsIndex] = 1,
        padding: str | SupportsIndex | Sequence = "SAME",
        dilation: SupportsIndex | Iterable[SupportsIndex] = 1,
        use_bias: bool = True,
        channels_first: bool = False,
        activation: ActivationName | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        window = _one_or_each("kernel_size", kernel_size)
        window = (window,) if isinstance(window, int) else window
        in_features = as_int("in_features", in_features, 1)
        self.depth_multiplier = as_int("depth_multiplier", depth_multiplier, 1)
        shape = (*window, in_features * self.depth_multiplier)
        scale = math.prod(window) ** -0.5  # LeCun-normal: the window is all an output sees
        initial = draw(
            nnx.initializers.normal(scale), rngs, shape, float_dtype("param_dtype", param_dtype)
        )
        self.dtype = computing_dtype(dtype)
        self.depthwise = nnx.Param(initial)
        self.strides = _one_or_each("strides", strides)
        self.dilation = _one_or_each("dilation", dilation)
        # Pairs as tuples: a module's options are static to nnx, and so must be hashable.
        self.padding = padding
        if not isinstance(padding, str) and isinstance(padding, Iterable):
            self.padding = tuple(tuple(p) if isinstance(p, Iterable) else p for p in padding)
        self.channels_first = channels_first
        self.pointwise = PointwiseConv(
            shape[-1], out_features, use_bias=use_bias, activation=activation,
            channels_first=channels_first, dtype=dtype, param_dtype=param_dtype, rngs=rngs,
        )  # fmt: skip

    def __call__(
        self, inputs: Float[Array, " batch *positions_and_in"]
    ) -> Float[Array, " batch *outputs_and_out"]:
        """The block's outputs, each spatial axis divided by its stride where padding is "SAME"."""
        inputs, depthwise = as_computed(self.dtype, (inputs, self.depthwise[...]))
        mixed = depthwise_conv(
            inputs, depthwise, depth_multiplier=self.depth_multiplier,
            strides=self.strides, padding=self.padding, dilation=self.dilation,
            channels_first=self.channels_first,
        )  # fmt: skip
        return self.pointwise(mixed)


def _one_or_each(
    name: str, value: SupportsIndex | Iterable[SupportsIndex]
) -> int | tuple[int, ...]:
    """One integer for all spatial axes, or one for each."""
    if isinstance(value, Iterable):
        return tuple(as_int(name, each, 1) for each in value)
    return as_int(name, value, 1)
