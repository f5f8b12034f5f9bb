"""A head made ready to compute with: laid out, without what is left out, by its temperature."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels.linear_softmax.sharded import specs
from jaxnets.kernels.linear_softmax.tiles import Options, is_in
from jaxnets.kernels.meshes import WHOLE
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.vocab_sharding import VocabSharding


def temperature_axis(of: dict[str, Any]) -> int:
    """The axis of the batch in the ``temperature`` of a call, for ``meshes.over_rows``."""
    temperature = of["temperature"]
    return WHOLE if temperature is None or not temperature.ndim else 0


def prepared(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    temperature: jax.Array | None,
    kept: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states, weight and bias: zeros where there is none, and for tokens left out.

    ``kept [...]`` is 0 for those; ``hidden`` is laid out already.
    """
    _, table, classes = specs(sharding, options)
    weight, bias = sharding.place(weight, table), sharding.place(bias, classes)
    if kept is not None:
        # Masked before any arithmetic: a token that is left out leaves no trace, be it NaN.
        hidden = jnp.where((kept == 0)[..., None], 0, hidden)
    if temperature is not None:
        if temperature.ndim:
            (temperature,) = sharding.place_tokens(temperature)
        hidden, weight, bias = _divided(options, hidden, weight, bias, temperature, kept)
    return hidden, weight, whole_bias(sharding, options, hidden, weight, bias)


def whole_bias(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    """``bias``, zeros where there is none; -inf for what pads the classes."""
    vocab_size, (_, _, classes) = weight.shape[options.vocab_axis], specs(sharding, options)
    if bias is None:
        bias = jnp.zeros(vocab_size, options.accumulator(hidden, weight))
    bias = sharding.place(bias, classes)
    count = options.classes(vocab_size)
    if count == vocab_size:
        return bias
    padding = sharding.place(jnp.arange(vocab_size) >= count, classes)
    return jnp.where(padding, -jnp.inf, bias)


def factors_by_reduction(
    sharding: VocabSharding,
    kept: jax.Array | None,
    batch: tuple[int, ...],
    reduction: str,
    dtype: jnp.dtype,
) -> jax.Array:
    """What each token's loss is multiplied by in a sum that is the "sum" or the "mean", ``batch``.

    ``kept``: the tokens' weights, or None for 1.
    """
    if kept is None:
        (kept,) = sharding.place_tokens(jnp.ones(batch, dtype))
    if reduction == "sum":
        return kept
    total = kept.sum()
    return jnp.where(total == 0, 0, kept / jnp.where(total == 0, 1, total))


def scale_of(
    sharding: VocabSharding,
    temperature: jax.Array | None,
    kept: jax.Array | None,
    batch: tuple[int, ...],
    dtype: jnp.dtype,
) -> jax.Array | None:
    """What each token's logits are multiplied by, ``batch``; None for 1."""
    if temperature is None:
        return None
    (temperature,) = sharding.place_tokens(jnp.broadcast_to(temperature.astype(dtype), batch))
    return _inverse(temperature, kept)


def _inverse(temperature: jax.Array, kept: jax.Array | None) -> jax.Array:
    """1 / ``temperature``; 1 where a token is left out, NaN where it is found out to be none."""
    if temperature.ndim and kept is not None:
        temperature = jnp.where(kept == 0, 1, temperature)
    return 1 / jnp.where(temperature > 0, temperature, jnp.nan)


def _divided(
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    temperature: jax.Array,
    kept: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """A projection whose logits are those of the given one divided by ``temperature``."""
    accumulator = accumulator_dtype(hidden, weight)
    scale = _inverse(temperature.astype(accumulator), kept)
    wide = hidden.astype(accumulator) * (scale[..., None] if scale.ndim else scale)
    # float16 ends at 65,504, which what is divided by a small temperature may pass.
    narrow = accumulator if hidden.dtype == jnp.float16 else hidden.dtype
    if bias is None:
        return wide.astype(narrow), weight, None
    inside = is_in(bias)  # the others stay as they are: 0 times inf would be their gradient
    bias = jnp.where(inside, bias, 0).astype(accumulator)
    if temperature.ndim == 0:
        return wide.astype(narrow), weight, jnp.where(inside, bias * scale, -jnp.inf)
    # Of a temperature for each token a bias makes no vector any more, but one more feature.
    wide = jnp.concatenate([wide, scale[..., None]], -1)
    axis = 1 - options.vocab_axis
    column = jnp.expand_dims(bias, axis)
    weight = jnp.concatenate([weight.astype(accumulator), column], axis)
    return wide, weight, jnp.where(inside, jnp.zeros_like(bias), -jnp.inf)
