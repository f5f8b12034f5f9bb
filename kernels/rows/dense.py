"""Between rows and whole tables: adding, setting, and a dense gradient as rows."""

from __future__ import annotations

from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Shaped

from jaxnets.kernels import meshes
from jaxnets.kernels.checks import INT32_MAX, as_int, is_known
from jaxnets.kernels.numerics import accumulator_dtype, result_dtype, stochastic_bfloat16
from jaxnets.kernels.rows.in_place import is_left_to_numpy, put_rows
from jaxnets.kernels.rows.rows import SparseRows


@jax.named_scope("rows_from_dense")
def rows_from_dense(gradient: jax.Array, num_rows: SupportsIndex) -> SparseRows:
    """The rows of a dense ``gradient [vocab, ...]`` that are not 0, at most ``num_rows`` of them.

    For tests and for moving over: it reads the whole gradient.

    Raises:
      TypeError: under ``jit``, a gradient of integers with fewer ``num_rows`` than its own.
      ValueError: a gradient without axes, ``num_rows`` below 1 (0 where it is empty), or more rows
        than that where they are known; under ``jit`` the values are then NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> dense = jnp.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
      >>> rows = jax.jit(rows_from_dense, static_argnums=1)(dense, 2)
      >>> rows.ids.tolist(), rows.values.tolist()
      ([3, 6], [[1.0, 1.0], [0.0, 0.0]])
    """
    gradient = jnp.asarray(gradient)
    if not gradient.ndim:
        raise ValueError(f"gradient must be [vocab, ...], got shape {gradient.shape}")
    num_rows = as_int("num_rows", num_rows, 1 if gradient.size else 0)
    gradient, vocab_size = meshes.replicated(gradient), gradient.shape[0]
    if vocab_size + num_rows > INT32_MAX:
        raise ValueError(f"vocab_size + num_rows must fit int32, got {vocab_size} + {num_rows}")
    if not vocab_size:
        values = jnp.zeros((num_rows, *gradient.shape[1:]), gradient.dtype)
        return SparseRows(jnp.arange(num_rows, dtype=jnp.int32), values)
    touched = (gradient != 0).any(tuple(range(1, gradient.ndim)))
    count = touched.sum()
    if is_known(count) and int(count) > num_rows:
        raise ValueError(f"num_rows must be at least {int(count)}, the rows not 0, got {num_rows}")
    (ids,) = jnp.nonzero(touched, size=num_rows, fill_value=vocab_size)
    ids = ids.astype(jnp.int32)
    ids = ids + jnp.where(ids < vocab_size, 0, jnp.arange(num_rows, dtype=jnp.int32))
    values = gradient.at[ids].get(mode="fill", fill_value=0)
    if not is_known(count) and num_rows < vocab_size:
        if not jnp.issubdtype(values.dtype, jnp.inexact):
            raise TypeError(f"gradient must be floating point under jit, got {values.dtype}")
        values = jnp.where(count > num_rows, jnp.asarray(jnp.nan, values.dtype), values)
    return SparseRows(ids, values)


@jax.named_scope("add_rows")
def add_rows(
    table: Shaped[ArrayLike, "vocab ..."], rows: SparseRows, *, key: jax.Array | None = None
) -> jax.Array:
    """``table [vocab, ...]`` with ``rows`` added; in place where the table is donated.

    Added in the wider of the two dtypes, and rounded once: to the nearest, or with a random ``key``
    and a table in bfloat16 up or down at random, so that the sum is right on average.

    Raises:
      TypeError: what is not ``SparseRows``, or floats for a table of integers.
      ValueError: rows of another shape than the table's.

    Example:
      >>> import jax.numpy as jnp
      >>> add_rows(jnp.ones((4, 1)), SparseRows([1, 3], jnp.array([[2.0], [5.0]])))[:, 0].tolist()
      [1.0, 3.0, 1.0, 6.0]
    """
    table = _check(table, rows)
    key = key if table.dtype == jnp.bfloat16 else None
    dtype = (result_dtype if key is None else accumulator_dtype)(table, rows.values)
    whole, ids, values = meshes.replicated((table, *rows))
    if dtype != table.dtype or is_left_to_numpy(whole):
        new = whole.at[ids].get(mode="clip").astype(dtype) + values.astype(dtype)
        if key is not None:
            new = stochastic_bfloat16(new, key)
        return set_rows(table, rows._replace(values=new))
    whole = whole.at[ids].add(
        values.astype(table.dtype),
        mode="drop",
        unique_indices=True,
        indices_are_sorted=True,
    )
    return meshes.placed_like(table, whole)


@jax.named_scope("set_rows")
def set_rows(table: jax.Array, rows: SparseRows) -> jax.Array:
    """``table [vocab, ...]`` with ``rows`` put in; in place where the table is donated."""
    table = _check(table, rows)
    whole, ids, values = meshes.replicated((table, *rows))
    return meshes.placed_like(table, put_rows(whole, ids, values.astype(table.dtype)))


def _check(table: Any, rows: Any) -> jax.Array:
    """The table as an array; raises unless rows fit it."""
    if not isinstance(rows, SparseRows):
        raise TypeError(f"rows must be SparseRows(ids, values), got {type(rows).__name__}")
    table, values = jnp.asarray(table), rows.values
    if not table.ndim or values.shape[1:] != table.shape[1:]:
        raise ValueError(
            f"rows must have values [rows, ...] of the shape of the table's rows, {table.shape[1:]}"
            f", got {values.shape[1:]}"
        )
    if jnp.issubdtype(values.dtype, jnp.inexact) > jnp.issubdtype(table.dtype, jnp.inexact):
        raise TypeError(f"table must be floating point as rows are, got {table.dtype}")
    return table


def to_dense(rows: SparseRows, vocab_size: SupportsIndex) -> jax.Array:
    """The dense gradient [vocab, ...] that ``rows`` stand for.

    Raises:
      TypeError: what is not ``SparseRows``, or a ``vocab_size`` that is no integer.
      ValueError: a negative ``vocab_size``.

    Example:
      >>> import jax.numpy as jnp
      >>> to_dense(SparseRows([1, 3], jnp.array([[2.0], [5.0]])), 5)[:, 0].tolist()
      [0.0, 2.0, 0.0, 5.0, 0.0]
    """
    vocab_size = as_int("vocab_size", vocab_size, 0)
    return add_rows(jnp.zeros((vocab_size, *rows.values.shape[1:]), rows.values.dtype), rows)
