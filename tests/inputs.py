"""Kinds of input that many tests go through."""

import jax
import numpy as np

INTEGER_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def on_device(array, dtype=None):
    """``jnp.asarray``, which outside of jit compiles a program for each shape, by a copy."""
    return jax.device_put(np.asarray(array, dtype))


def ones(shape, dtype=np.float32):
    """``jnp.ones`` without a program for each shape."""
    return on_device(np.ones(shape, dtype))


def changed(array, place, value):
    """As ``array.at[place].set(value)`` has it, by NumPy, which compiles nothing."""
    array = np.array(array)
    array[place] = value
    return on_device(array)


def summed_rows(rows, vocab_size):
    """``to_dense(rows, vocab_size)`` by NumPy: ids of no class are left out."""
    ids, values = map(np.asarray, rows)
    dense = np.zeros((vocab_size, *values.shape[1:]), values.dtype)
    there = (ids >= 0) & (ids < vocab_size)
    np.add.at(dense, ids[there], values[there])
    return dense
