"""Rows put into a table in place, a bfloat16 one on CPU too.

XLA's CPU backend before jax 0.11.2 scatters bfloat16 by way of a float32 copy of the whole table. A
bitcast to integers is a copy too, and updating row by row makes one a row. So there NumPy writes
the rows into the buffer that XLA would have updated, and a donated table is not copied. It costs
what a program that calls Python lacks: JAX's compilation cache does not keep it, and ``jax.export``
refuses it. :func:`jaxnets.kernels.xla_only` leaves it to XLA.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels import dispatch

CONVERTS_BFLOAT16 = jax.__version_info__ < (0, 11, 2)


def is_left_to_numpy(table: jax.Array) -> bool:
    """Whether NumPy puts rows into this table, since XLA would convert all of it."""
    return CONVERTS_BFLOAT16 and table.dtype == jnp.bfloat16 and dispatch.may_call_host()


def put_rows(table: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """``table`` with ``values [rows, ...]`` of its dtype at ids; those beyond it are dropped.

    Ids are sorted and distinct.
    """
    return (_by_numpy if is_left_to_numpy(table) else _by_xla)(table, ids, values)


def _by_xla(table: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    return table.at[ids].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)


@jax.custom_jvp
def _by_numpy(table: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    from jax.experimental.buffer_callback import buffer_callback

    result = jax.ShapeDtypeStruct(table.shape, table.dtype)
    put = buffer_callback(_put, result, input_output_aliases={0: 0}, vmap_method="sequential")
    return put(table, ids, values)


@_by_numpy.defjvp
def _by_numpy_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(_by_xla, primals, tangents)


def _put(_context: Any, out: Any, _table: Any, ids: Any, values: Any) -> None:
    """``out`` is the table's own buffer, or XLA's copy of it."""
    table, ids = np.asarray(out), np.asarray(ids)
    # An id that is out of order has NaN for values and may be any number, as XLA takes it.
    inside = (ids >= -len(table)) & (ids < len(table))
    table[ids[inside]] = np.asarray(values)[inside]
