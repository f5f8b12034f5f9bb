"""What several arrays that go into one have in common: a type that holds every value, and a shape.

NumPy casts and broadcasts on assignment without a word: 0.5 into integers is 0, 300 into int8 is
44, 1e5 into float16 is inf, one feature among twelve is copied twelve times. Here the type is the
common one, or an error names the two entries that have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_array(name: str, value: Any) -> np.ndarray:
    """``value`` as NumPy's array, an error with its name where it is none."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array: {error}") from None


def common_type(types: dict[np.dtype, str]) -> np.dtype:
    """The type that holds the values of all ``types``, each with the name of an entry of its own.

    Integers have no common type in the floats (NumPy's for int64 and uint64), nor numbers one in
    the strings. An integer beside a float may still be too large for it: see :func:`cast`.

    Raises:
      TypeError: there is none.
    """
    for dtype, name in types.items():
        if dtype.hasobject:
            raise TypeError(f"{name} must hold numbers, booleans or strings, got dtype {dtype}")
    try:
        common = np.result_type(*types)
    except TypeError:
        common = None
    kinds = {"number" if is_number(dtype) else dtype.kind for dtype in types}
    whole = all(_is_whole(dtype) for dtype in types)
    if common is None or len(kinds) > 1 or (whole and not _is_whole(common)):
        entries = ", ".join(f"{name} is {dtype}" for dtype, name in types.items())
        raise TypeError(f"entries must have a type that holds them all: {entries}; cast them first")
    return common


def is_number(dtype: np.dtype) -> bool:
    """Whether it is one that JAX computes with, bfloat16 and booleans included."""
    return jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b"


def _is_whole(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or dtype.kind == "b"


def cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``array`` in the common type ``dtype``.

    Raises:
      ValueError: an integer that the float type does not hold.
    """
    result = array.astype(dtype, copy=False)
    if _is_whole(array.dtype) and not _is_whole(dtype) and is_number(dtype):
        with np.errstate(invalid="ignore"):
            back = result.real.astype(array.dtype)
        if (lost := array[back != array]).size:
            raise ValueError(
                f"{name} is {array.dtype}, and {lost.flat[0]} is not exact in {dtype}, the common "
                "type of all entries; cast them first"
            )
    return result


def as_padding(padding: Any, dtype: np.dtype) -> np.ndarray:
    """``padding``, a number, in the type of the sequences.

    Raises:
      ValueError: the type does not hold it: 0.5 or -1 in unsigned integers, 1e5 in float16.
    """
    given = as_array("padding", padding)
    if (
        given.ndim == 0
        and is_number(given.dtype)
        and (given.dtype.kind != "c" or dtype.kind == "c")
    ):
        with np.errstate(all="ignore"):
            value = given.astype(dtype)
        if _is_whole(dtype):
            held = value == given
        else:  # rounding is no loss, but inf or 0 for another number is
            held = np.isclose(
                value.astype(complex), given.astype(complex),
                rtol=float(jnp.finfo(dtype).eps), atol=0, equal_nan=True,
            )  # fmt: skip
        if held:
            return value
    raise ValueError(f"padding must be a value of the sequences' type, {dtype}, got {padding!r}")


class Side:
    """The sequences of one side, [time, ...] each, read as arrays of one type and width.

    Args:
      name: of the argument they came in.
      sequences: an array [examples, time, ...], or one array or list an example.
      examples: those whose common type it is.

    Attributes:
      dtype: the common type; of sequences without a step only where there are no others.
      features: the axes after time.

    Raises:
      TypeError: they have no common type, or are not numbers.
      ValueError: they differ in the axes after time, or one has no axis of time.
    """

    def __init__(self, name: str, sequences: Any, examples: Iterable[int]):
        self.name = name
        self.sequences = np.asarray(sequences) if isinstance(sequences, jax.Array) else sequences
        whole = isinstance(sequences, np.ndarray) and not sequences.dtype.hasobject
        types: dict[np.dtype, int] = {}  # each with the first example that has it
        widths: dict[tuple[int, ...], int] = {}
        empty: np.ndarray | None = None
        # A whole array has one type and width: its first sequence tells them, if it has any.
        for example in [0] * bool(len(sequences)) if whole else examples:
            array = self._read(example)
            if len(array):
                types.setdefault(array.dtype, example)
                widths.setdefault(array.shape[1:], example)
            elif empty is None:
                empty = array
        if len(widths) > 1:
            (width, one), (other, another), *_ = widths.items()
            raise ValueError(
                "sequences must be alike in the axes after time, got "
                f"{('time', *width)} at {name}[{one}] and {('time', *other)} at {name}[{another}]"
            )
        if types:
            self.dtype = common_type({t: f"{name}[{i}]" for t, i in types.items()})
            (self.features,) = widths
        else:
            self.dtype = np.dtype(np.float32) if empty is None else empty.dtype
            self.features = () if empty is None else empty.shape[1:]
        if not is_number(self.dtype):
            raise TypeError(f"{name} must hold numbers or booleans, got dtype {self.dtype}")

    def __getitem__(self, example: int) -> np.ndarray:
        array = self._read(example)
        if array.dtype == self.dtype:
            return array
        return cast(f"{self.name}[{example}]", array, self.dtype)

    def _read(self, example: int) -> np.ndarray:
        array = self.sequences[example]
        if not isinstance(array, np.ndarray):
            array = as_array(f"{self.name}[{example}]", array)
        if array.ndim == 0:
            raise ValueError(f"{self.name}[{example}] must be [time, ...], got {array!r}")
        return array


def stack(name: str, entries: Sequence[Any]) -> np.ndarray:
    """``entries``, at least one, of one shape, as an array [entries, ...] of their common type."""
    arrays = [as_array(f"{name}[{i}]", entry) for i, entry in enumerate(entries)]
    types: dict[np.dtype, str] = {}
    for i, array in enumerate(arrays):
        types.setdefault(array.dtype, f"{name}[{i}]")
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"{name} must be entries of one shape, got {arrays[0].shape} at {name}[0] and "
                f"{array.shape} at {name}[{i}]"
            )
    dtype = common_type(types)
    return np.stack([cast(f"{name}[{i}]", array, dtype) for i, array in enumerate(arrays)])


def as_rows(rows: Any, count: int, of: str) -> Any:
    """A tree of arrays with one entry an example; a list of labels is one array.

    Raises:
      TypeError: a list of labels without a common type.
      ValueError: an array with another number of entries than ``count``.
    """

    def one(path, value):
        name = "rows" + jax.tree_util.keystr(path)
        array = value if isinstance(value, list) else as_array(name, value)
        if isinstance(array, list) or array.dtype.hasobject:
            array = stack(name, list(array)) if len(array) else np.zeros(0)
        entries = len(array) if array.ndim else "none"
        if entries != count:
            raise ValueError(f"{name} must have one entry for each of {of}, {count}, got {entries}")
        return array

    return jax.tree_util.tree_map_with_path(one, rows, is_leaf=_is_list_of_values)


def _is_list_of_values(tree: Any) -> bool:
    return isinstance(tree, list) and all(np.ndim(leaf) == 0 for leaf in jax.tree.leaves(tree))
