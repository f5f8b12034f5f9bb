"""What plans and packing do with lengths before they compute with them, on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnets.kernels.checks import INT32_MAX


def as_lengths(name: str, values: Any, lowest: int) -> np.ndarray:
    """``values``, integers of any width or a list of them, as an int64 array that none can alter.

    It is a copy: what the caller does to his own array later has no effect.

    Raises:
      TypeError: they are not integers; floats are not rounded.
      ValueError: they are no array, or one lies below ``lowest`` or beyond int32.
    """
    try:
        array = np.array(values)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of integers: {error}") from None
    if not array.size:
        array = array.astype(np.int64)  # NumPy calls an empty list float64
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    for wrong, limits in (
        (array < lowest, f"at least {lowest}"),
        (array > INT32_MAX, f"at most {INT32_MAX}"),
    ):
        if wrong.any():
            index = np.argwhere(wrong)[0].tolist()
            raise ValueError(f"{name} must be {limits}, got {array[wrong][0]} at {index}")
    array = array.astype(np.int64)
    array.flags.writeable = False
    return array
