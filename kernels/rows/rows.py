"""Rows of a table by their ids: a gradient that is 0 wherever it names no row.

The ids are whole numbers among gradients, and libraries such as optax scale, add and average every
array that they find in a gradient. Scaled ids would silently name other rows. So inside a
:class:`SparseRows` they are kept as an array of a dtype of their own, "ids of
jaxnets.kernels.SparseRows", which JAX moves about as any other and refuses to compute with, naming
it. (It is declared as a kind of random key, the one way that JAX has to declare such a dtype.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Integer, Shaped

from jaxnets.kernels.checks import INT32_MAX, as_integers, is_known


def _refuse(*_args: Any) -> NoReturn:
    raise TypeError("the ids of jaxnets.kernels.SparseRows are no random keys")


_IDS = jax.extend.random.define_prng_impl(
    key_shape=(1,), seed=_refuse, split=_refuse, random_bits=_refuse, fold_in=_refuse,
    name="jaxnets_row_ids", tag="ids of jaxnets.kernels.SparseRows",
)  # fmt: skip


def _in_order(ids: Any) -> Any:
    """Whether ids are at least 0, sorted and distinct."""
    return (ids[1:] > ids[:-1]).all() & (ids[:1] >= 0).all()


@jax.tree_util.register_pytree_with_keys_class
class SparseRows:
    """Rows of a table: ``values[i]`` belongs to row ``ids[i]``; what is not named is 0.

    Optimizers and transformations of ``jaxnets.optim`` take it, as ``clip_by_global_norm``,
    ``scale`` and ``accumulate``; by hand, ``_replace(values=...)``. Those of optax that compute
    with a gradient are refused with a TypeError that names the ids.

    Attributes:
      ids: [rows] int32, distinct and sorted, at least 0; ids of vocab and above (out of bounds)
        fill up behind the last.
      values: [rows, ...].

    Raises:
      TypeError: ids that are not integers.
      ValueError: ids that are not [rows], values that are not [rows, ...], ids that are not sorted
        and distinct, or negative. Where only a traced program can see that, the values are NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> rows = SparseRows([3, 7], jnp.ones((2, 4)))
      >>> ids, values = rows
      >>> ids.tolist(), rows._replace(values=2 * values).values[0, 0].item()
      ([3, 7], 2.0)
      >>> jax.tree.map(lambda gradient: 0.5 * gradient, rows)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      TypeError: ...ids of jaxnets.kernels.SparseRows...
    """

    __slots__ = ("_kept", "values")
    __array_ufunc__ = None  # else NumPy would take it for a sequence to compute with

    values: Any

    def __init__(
        self, ids: Integer[ArrayLike, " rows"] | Sequence, values: Shaped[ArrayLike, "rows ..."]
    ) -> None:
        whole, values = as_integers("ids", ids), jnp.asarray(values)
        if whole.ndim != 1:
            raise ValueError(f"ids must be [rows], got shape {whole.shape}")
        if values.shape[:1] != whole.shape:
            raise ValueError(f"values must be [{whole.size}, ...] as ids are, got {values.shape}")
        if is_known(whole):
            known = np.asarray(whole)
            if not _in_order(known):
                raise ValueError(
                    "ids must be distinct, sorted and at least 0, as gather_rows makes them, got "
                    f"{known[:8].tolist()}{' ...' if known.size > 8 else ''}"
                )
        elif jnp.issubdtype(values.dtype, jnp.inexact):
            values = jnp.where(_in_order(whole), values, jnp.asarray(jnp.nan, values.dtype))
        # From the end, so that the ids of zeros_like, which are 0 bits, name no row.
        data = jax.lax.bitcast_convert_type(INT32_MAX - whole, jnp.uint32)
        self._kept = jax.random.wrap_key_data(data[:, None], impl=_IDS)
        self.values = values

    @property
    def ids(self) -> jax.Array:
        """[rows] int32."""
        data = jax.random.key_data(self._kept)
        return INT32_MAX - jax.lax.bitcast_convert_type(data[:, 0], jnp.int32)

    def _replace(self, *, values: Any) -> SparseRows:
        """The same rows with other values."""
        return self.tree_unflatten(None, (self._kept, values))

    def __iter__(self) -> Iterator[jax.Array]:
        yield self.ids
        yield self.values

    def __radd__(self, table: Any) -> jax.Array:
        """``table`` with the rows added: what ``optax.apply_updates`` does with an update."""
        from jaxnets.kernels.rows.dense import add_rows

        return add_rows(table, self)

    def __repr__(self) -> str:
        ids = self.ids if isinstance(self._kept, jax.Array) else self._kept
        return f"Rows(ids={ids}, values={self.values})"

    def tree_flatten_with_keys(self) -> tuple[tuple, None]:
        names = jax.tree_util.GetAttrKey("ids"), jax.tree_util.GetAttrKey("values")
        return tuple(zip(names, (self._kept, self.values), strict=True)), None

    @classmethod
    def tree_unflatten(cls, _nothing: None, children: Any) -> SparseRows:
        """Around whatever JAX puts in place of arrays, so without checks."""
        rows = object.__new__(cls)
        rows._kept, rows.values = children
        return rows
