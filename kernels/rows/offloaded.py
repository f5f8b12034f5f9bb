"""Rows of tables that lie in the host's memory: what is gathered moves, and nothing else.

The host gathers and scatters (``compute_on``); everything that computes with rows runs on the
device. All operands of a computation on the host must be there, constants too, so that is all that
is done there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental import compute_on

HOST_KIND = "pinned_host"


def check_offloading() -> None:
    """Raises unless this JAX has memory spaces in its types."""
    if jax.__version_info__ < (0, 12):
        raise NotImplementedError(f"offloaded tables need jax >= 0.12, this is {jax.__version__}")


def read_offloaded(reads: list[tuple[jax.Array, jax.Array]]) -> list[jax.Array]:
    """Of pairs (table [vocab, ...] of the host, ids [rows]) the rows, on the device.

    An id beyond the table gives its last row.
    """
    found = _at_host(lambda reads: [_gather(*read) for read in reads], _with_indices(reads))
    return jax.device_put(found, jax.memory.Space.Device)


def write_offloaded(writes: list[tuple[jax.Array, jax.Array, jax.Array]]) -> list[jax.Array]:
    """Of triples (table, ids, rows) the tables with these rows, in place where they are donated.

    Ids are sorted and distinct; those beyond a table are dropped.
    """
    given = [(table, ids, rows.astype(table.dtype)) for table, ids, rows in writes]
    return _at_host(lambda writes: [_scatter(*write) for write in writes], _with_indices(given))


def _with_indices(operands: list[Any]) -> list[Any]:
    return [(table, ids[:, None], *rows) for table, ids, *rows in operands]


def _gather(table: jax.Array, at: jax.Array) -> jax.Array:
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(1, table.ndim)), collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    return lax.gather(
        table, at, numbers, (1, *table.shape[1:]), mode=lax.GatherScatterMode.CLIP,
        indices_are_sorted=True,
    )  # fmt: skip


def _scatter(table: jax.Array, at: jax.Array, rows: jax.Array) -> jax.Array:
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(1, table.ndim)), inserted_window_dims=(0,),
        scatter_dims_to_operand_dims=(0,),
    )  # fmt: skip
    return lax.scatter(
        table, at, rows, numbers, indices_are_sorted=True, unique_indices=True,
        mode=lax.GatherScatterMode.FILL_OR_DROP,
    )  # fmt: skip


def _at_host(function: Callable, operands: Any) -> Any:
    host = jax.memory.Space.Host
    run = compute_on.compute_on(function, compute_type="device_host", out_memory_spaces=host)
    return run(jax.device_put(operands, host))
