"""What the exact loss is given beside its arrays: checked at its door."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.kernels import dispatch
from jaxnets.kernels.checks import as_int, as_number, is_known
from jaxnets.kernels.linear_softmax.tile_sizes import Sizes, check_tiles, chosen_tiles
from jaxnets.kernels.linear_softmax.tiles import Options
from jaxnets.kernels.losses import vocab_size_of
from jaxnets.kernels.numerics import result_dtype
from jaxnets.kernels.vocab_sharding import VocabSharding


def check_options(
    label_smoothing: Any,
    z_loss: Any,
    soft_cap: Any,
    tiles: Any,
    features_first: bool,
    sizes: Sizes,
    choice: dispatch.Choice | None = None,
) -> Options:
    """The options, each in its range: they are static, so plain numbers.

    ``choice``: what computes a gradient in one pass, with the tiles that a table or the tuner knows
    to serve it best on this device; None: nothing is known.
    """
    smoothing, z_loss = as_number("label_smoothing", label_smoothing), as_number("z_loss", z_loss)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {smoothing}")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss must be at least 0, got {z_loss}")
    if soft_cap is not None:
        soft_cap = as_number("soft_cap", soft_cap)
        if not 0 < soft_cap < math.inf:
            raise ValueError(f"soft_cap must be above 0, got {soft_cap}")
    known = choice.tiles if choice is not None and choice.implementation == "tiled" else None
    platform = dispatch.target().platform
    tokens, classes = chosen_tiles(check_tiles(tiles), platform, sizes, known)
    return Options(
        smoothing, z_loss, soft_cap, tokens, classes, bool(features_first),
        in_columns=platform == "tpu",
    )  # fmt: skip


def sizes_of(
    hidden: jax.Array,
    weight: jax.Array,
    features_first: bool,
    sharding: VocabSharding,
    computed: Any = None,
) -> Sizes:
    """What a device has of the tokens and classes; ``computed`` the dtype, None: by the arrays."""
    return Sizes(
        math.prod(hidden.shape[:-1]) // sharding.token_shards,
        hidden.shape[-1],
        vocab_size_of(weight, features_first) // sharding.shards,
        computed or result_dtype(hidden, weight),
        weight.dtype,
    )


def check_num_classes(num_classes: Any, vocab_size: int) -> int:
    """``num_classes``, by default ``vocab_size``, as an int."""
    if num_classes is None:
        return vocab_size
    classes = as_int("num_classes", num_classes)
    if not 1 <= classes <= vocab_size:
        raise ValueError(
            f"num_classes must lie in [1, vocab_size] = [1, {vocab_size}], got {classes}"
        )
    return classes


def check_precision(precision: Any) -> lax.Precision | None:
    """``precision``, or its name, as JAX's; raises unless it is one."""
    if precision is None:
        return None
    try:
        return lax.Precision(precision)
    except ValueError:
        raise ValueError(
            "precision must be None, a jax.lax.Precision or the name of one: 'default', 'high' or "
            f"'highest', got {precision!r}"
        ) from None


def check_compute_dtype(compute_dtype: Any, hidden: jax.Array, weight: jax.Array) -> Any:
    """``compute_dtype`` as a dtype; None where it is that of ``hidden`` and ``weight``.

    Raises unless it is floating point, of 16 bits at least (in 8 the gradient of a softmax is
    mostly 0) and no wider than what is given.
    """
    if compute_dtype is None:
        return None
    try:
        dtype = jnp.dtype(compute_dtype)
    except TypeError:
        raise TypeError(f"compute_dtype must be a dtype or None, got {compute_dtype!r}") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"compute_dtype must be floating point, got {dtype}")
    given = result_dtype(hidden, weight)
    bits, most = jnp.finfo(dtype).bits, jnp.finfo(given).bits
    if not 16 <= bits <= most:
        raise ValueError(
            f"compute_dtype must have 16 bits or more, and no more than hidden and weight, which "
            f"are {given}; got {dtype}"
        )
    return dtype if {hidden.dtype, weight.dtype} != {dtype} else None


def is_one_pass(options: Options, reduction: str, return_log_sum_exp: bool) -> bool:
    """Whether loss and gradient can come from one pass, of the engine that has one.

    A soft cap bends each logit, and then label smoothing is no longer a sum in closed form.
    """
    bent = options.soft_cap is not None and options.label_smoothing != 0
    return reduction != "none" and not return_log_sum_exp and not bent


def check_gradient_filter(
    gradient_filter: Any, options: Options, reduction: str, return_log_sum_exp: bool
) -> float | None:
    """The filter as a number, or None; raises where the gradient takes two passes."""
    if gradient_filter is None:
        return None
    least = as_number("gradient_filter", gradient_filter)
    if not 0 < least < 1:
        raise ValueError(f"gradient_filter must lie in (0, 1), got {least}")
    if not is_one_pass(options, reduction, return_log_sum_exp):
        raise ValueError(
            "gradient_filter must be None where the gradient takes two passes: with "
            "reduction='none', return_log_sum_exp or both a soft_cap and label_smoothing, got "
            f"{least}"
        )
    return least


def only_tiled(implementation: Any, **options: Any) -> Any:
    """``implementation``, "tiled" where one of ``options`` is given, which no other has."""
    for name in (name for name, given in options.items() if given is not None):
        if implementation not in (None, "tiled"):
            raise ValueError(
                f"implementation must be 'tiled' or None with {name}, got {implementation!r}"
            )
        implementation = "tiled"
    return implementation


def check_temperature(temperature: Any, shape: tuple[int, ...], kept: Any) -> jax.Array | None:
    """``temperature``, [] or of ``shape``, as an array; None where it is the number 1.

    Raises unless it is above 0 where that is known; of one a token, where ``kept`` [...] (or
    nothing is raised, if it is None).
    """
    if isinstance(temperature, float | int) and temperature == 1:
        return None
    try:
        temperature = jnp.asarray(temperature)
    except (TypeError, ValueError):
        raise TypeError(
            f"temperature must be a number or one a token, got {temperature!r}"
        ) from None
    if jnp.iscomplexobj(temperature):
        raise TypeError(f"temperature must be real, got dtype {temperature.dtype}")
    if temperature.shape not in ((), shape):
        raise ValueError(
            f"temperature must be one number for all tokens or one a token, shape {shape}, got "
            f"shape {temperature.shape}"
        )
    if not jnp.issubdtype(temperature.dtype, jnp.floating):
        temperature = temperature.astype(jnp.float32)
    if is_known(temperature) and (temperature.ndim == 0 or kept is not None):
        values = np.asarray(temperature, np.float64)
        wrong = ~((values > 0) & (values < math.inf))
        wrong &= kept if values.ndim else True
        if wrong.any():
            raise ValueError(f"temperature must be above 0, got {values[wrong].flat[0]}")
    return temperature


def known_as_kept(
    batch: tuple[int, ...],
    labels: jax.Array | None,
    ignore_index: int | None,
    token_weights: jax.Array | None,
) -> np.ndarray | None:
    """Which tokens are not left out, ``batch`` bool; None where the values are not known."""
    if not is_known(labels) or not is_known(token_weights):
        return None
    kept = np.ones(batch, bool) if token_weights is None else np.asarray(token_weights) != 0
    return kept if ignore_index is None else kept & (np.asarray(labels) != ignore_index)
