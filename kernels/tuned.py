"""What is known of a kind of device before anything is measured on it: the tables in ``tables/``.

A file a kind of device, ``tables/tpu-v5-lite.json``, a row a size that was tried::

    {"operation": "lstm", "dtype": "bfloat16",
     "sizes": {"batch": 16, "time": 1024, "features": 512, "hidden": 512, "extras": []},
     "implementation": "pallas", "tiles": null, "source": "compiler, libtpu 0.0.50.1"}

``source`` says where a row comes from: a compiler's estimate, or "measured on" with the device.
``python -m benchmarks compilers --tune`` writes the tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import jax.numpy as jnp

# A row speaks for sizes that are at most so many times larger or smaller than its own.
_REACH = 4.0


class Row(NamedTuple):
    """What a table says for sizes like ``sizes``."""

    device_kind: str
    sizes: Mapping[str, Any]
    implementation: str
    tiles: tuple[int, ...] | None
    source: str

    @property
    def sizes_in_words(self) -> str:
        """Those that are numbers, as :func:`jaxnets.kernels.explain` lists them."""
        return ", ".join(f"{name}={n}" for name, n in self.sizes.items() if type(n) is int)


def file_name(device_kind: str) -> str:
    """Of the table of a kind of device, as JAX names it."""
    return "-".join(device_kind.lower().split()) + ".json"


def look_up(
    device_kind: str | None, operation: str, dtype: Any, sizes: Mapping[str, Any]
) -> Row | None:
    """The row of the nearest sizes, if all of them are near, and the options the same."""
    if device_kind is None:
        return None
    rows = _rows(device_kind).get((operation, jnp.dtype(dtype).name), ())
    near = [(_distance(row.sizes, sizes), row) for row in rows]
    distance, row = min(near, key=lambda pair: pair[0], default=(math.inf, None))
    return row if distance < math.inf else None


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Between two sizes, in octaves; infinite where they are not alike."""
    total = 0.0
    for name, size in other.items():
        if type(size) is not int:
            same = one[name] == (list(size) if isinstance(size, tuple) else size)
            ratio = 1.0 if same else math.inf
        else:
            ratio = max(one[name], size) / max(min(one[name], size), 1)
        if ratio > _REACH:
            return math.inf
        total += math.log2(ratio)
    return total


@cache
def _rows(device_kind: str) -> dict[tuple[str, str], list[Row]]:
    """The rows of a kind of device, by operation and dtype; none where it has no table."""
    table = files(__package__).joinpath("tables", file_name(device_kind))
    if not table.is_file():
        return {}
    by_key: dict[tuple[str, str], list[Row]] = {}
    for row in json.loads(table.read_text(encoding="utf-8"))["rows"]:
        tiles = None if row["tiles"] is None else tuple(row["tiles"])
        found = Row(device_kind, row["sizes"], row["implementation"], tiles, row["source"])
        by_key.setdefault((row["operation"], row["dtype"]), []).append(found)
    return by_key
