"""What every public function does with what it is given, before any arithmetic.

An integer of any width becomes int32, a list an array, a size a tuple of int. What only values can
tell is checked where they are known (:func:`is_known`), and else made NaN by who uses them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

INT32_MAX = 2**31 - 1


def is_known(array: Any) -> bool:
    """Whether the values of ``array`` can be read now: it is not traced, and all of it is here."""
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def as_floats(name: str, values: Any) -> jax.Array:
    """``values`` as an array, in its own dtype.

    Raises:
      TypeError: they are not floating point.
    """
    array = _as_array(name, values)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {array.dtype}")
    return jnp.asarray(array)


def as_integers(name: str, values: Any, what: str = "integers") -> jax.Array:
    """``values`` as an int32 array; beyond int32 they become its ends, not what wraps around.

    In their own type small or unsigned integers wrap when they are compared or computed with, and
    JAX wraps int64 itself where x64 is off. The ends are out of every range that ids or lengths
    can lie in, so that such a value meets the check of the range.

    Raises:
      TypeError: they are not integers.
    """
    array = _as_array(name, values)
    if isinstance(values, list | tuple) and not array.size:
        array = array.astype(np.int32)  # NumPy calls an empty list float64
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be {what}, got dtype {array.dtype}")
    limits, ours = jnp.iinfo(array.dtype), np.iinfo(np.int32)
    if limits.max > ours.max:
        lowest, highest = max(limits.min, ours.min), ours.max
        array = array.clip(array.dtype.type(lowest), array.dtype.type(highest))
    return jnp.asarray(array.astype(np.int32))


def _as_array(name: str, values: Any) -> Any:
    """An array of NumPy's or JAX's."""
    if isinstance(values, jax.Array | np.ndarray):
        return values
    try:
        if isinstance(values, list | tuple) and holds_tracers(values):
            return jnp.asarray(values)
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be an array, got {type(values).__name__}: {error}") from None


def holds_tracers(values: Any) -> bool:
    """Whether ``values``, an array or nested lists, are traced in part."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def in_range(ids: Any, end: Any, lowest: int = 0) -> Any:
    """Which of ``ids``, an array, lie in [lowest, end)."""
    return (ids >= lowest) & (ids < end)


def check_range(
    name: str, ids: Any, lowest: int, end: int, axes: str, *, except_for: Any = None
) -> None:
    """Raise ``ValueError`` if ``ids`` are known and one of them lies outside [lowest, end).

    Args:
      name: the argument's.
      ids: integers.
      lowest: the first that is in range.
      end: the first above that is not.
      axes: what the message calls the range, as "[0, vocab_size)".
      except_for: a boolean array of the shape of ``ids``: where anything may stand.
    """
    if not is_known(ids) or not (except_for is None or is_known(except_for)):
        return
    values = np.asarray(ids)
    wrong = ~in_range(values, end, lowest)
    if except_for is not None:
        wrong &= ~np.broadcast_to(np.asarray(except_for), values.shape)
    if wrong.any():
        closing = f"{end})" if axes.endswith(")") else f"{end - 1}]"
        raise ValueError(
            f"{name} must lie in {axes} = [{lowest}, {closing}, got {values[wrong].flat[0]}"
        )


def as_int(name: str, value: Any, lowest: int | None = None) -> int:
    """``value`` as a Python int.

    Raises:
      TypeError: it is no integer (a bool is none, nor is 2.0).
      ValueError: it lies below ``lowest``.
    """
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if lowest is not None and whole < lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {whole}")
    return whole


def as_number(name: str, value: Any) -> float:
    """``value`` as a Python float: an option that shapes the program, so its value must be known.

    Raises:
      TypeError: it is traced, or no number.
    """
    try:
        if isinstance(value, str | bool | np.bool_):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, jax.errors.ConcretizationTypeError):
        raise TypeError(f"{name} must be a number known at trace time, got {value!r}") from None


def as_sizes(name: str, value: Any, axes: int, lowest: int = 1) -> tuple[int, ...]:
    """``value``, an integer or one for each of ``axes`` axes, as a tuple of Python ints.

    Raises:
      TypeError: it is neither.
      ValueError: their number is not ``axes``, or one lies below ``lowest``.
    """
    if hasattr(value, "__index__") and not getattr(value, "ndim", 0):
        return (as_int(name, value, lowest),) * axes
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be an integer or {axes} of them, got {value!r}")
    each = tuple(as_int(name, size, lowest) for size in value)
    if len(each) != axes:
        raise ValueError(f"{name} must be an integer or {axes} of them, got {each}")
    return each


def as_option(
    name: str,
    number: Any,
    is_right: Callable = lambda x: (x >= 0) & (x < jnp.inf),
    words: str = "a number of at least 0",
) -> Any:
    """A known number as a float, of whatever dtype it meets; a traced one, NaN if not right."""
    if callable(number):
        raise TypeError(f"{name} must be a number, not a schedule, got {number!r}")
    if jnp.shape(number) != ():
        raise ValueError(f"{name} must be {words}, got shape {jnp.shape(number)}")
    if not is_known(number):
        return jnp.where(is_right(number), number, jnp.asarray(jnp.nan, jnp.result_type(number)))
    known = as_number(name, number)
    if not is_right(known):
        raise ValueError(f"{name} must be {words}, got {number}")
    return known
