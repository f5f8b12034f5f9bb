"""Rows of a table by their numbers, checked: no other row stands in for one that is not there."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Integer

from jaxnets.kernels import checks
from jaxnets.kernels.meshes import WHOLE, over_rows


def look_up(
    table: Float[Array, "vocab features"],
    ids: Integer[ArrayLike, "*batch"] | Sequence,
    name: str = "ids",
) -> Float[Array, "*batch features"]:
    """``table[ids]``, where plain indexing would give the last row for what is beyond it.

    Args:
      table: [vocab, features].
      ids: [...], integers in [0, vocab_size).
      name: what an error calls ``ids``.

    Returns:
      [..., features]; under ``jit``, where values are not known, NaN for an id out of range, which
      gets no gradient.

    Raises:
      TypeError: ids that are not integers.
      ValueError: an id out of range whose value is known.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> table = jnp.arange(3.0)[:, None]
      >>> look_up(table, [2, 0])[:, 0].tolist()
      [2.0, 0.0]
      >>> jax.jit(look_up)(table, jnp.array([2, 3]))[:, 0].tolist()
      [2.0, nan]
    """
    vocab_size = table.shape[0]
    ids = checks.as_integers(name, ids)
    checks.check_range(name, ids, 0, vocab_size, "[0, vocab_size)")
    return _rows(ids, table)


@over_rows(ids=0, table=WHOLE)
def _rows(ids, table):
    if checks.is_known(ids):
        return table[ids]
    beyond = jnp.where(ids < 0, table.shape[0], ids)  # a negative index would count from the end
    return table.at[beyond].get(mode="fill", fill_value=jnp.nan)
