"""Kinds of input that many tests go through."""

import jax.numpy as jnp
import numpy as np

INTEGER_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def changed(array, place, value):
    """As ``array.at[place].set(value)`` has it, by NumPy, which compiles nothing."""
    array = np.array(array)
    array[place] = value
    return jnp.asarray(array)
