"""The tables of ``kernels/tables/``: which implementation a TPU's compiler says is cheapest.

The cycles are estimates, and those of a Pallas kernel lack its waiting on memory. So a table
prefers another implementation to that of the platform's rule only where it takes less than two
thirds of the cycles, and says nothing where that one did not compile. Of an implementation on XLA
it takes the tiles of the fewest temporaries whose cycles are nearly the fewest. XLA for GPU
estimates no cycles: it has no table.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import pointwise
from benchmarks.compilers.devices import DEVICES, TPUS
from benchmarks.compilers.records import TpuRecord
from benchmarks.compilers.worker import Worker
from benchmarks.harness import progress
from jaxnets.kernels import dispatch, tuned
from jaxnets.kernels.tuning import PROBLEMS, candidates, value_and_gradients

_MARGIN = 2 / 3
_NEARLY = 1.04  # times the fewest cycles of any tiles


class Question(NamedTuple):
    """What a row of a table answers."""

    operation: str
    dtype: str
    sizes: dict[str, Any]


def questions() -> Iterator[Question]:
    """The classes of shapes that are looked at."""
    for dtype in ("bfloat16", "float32"):
        for batch, time, hidden in ((32, 128, 256), (16, 1024, 512), (64, 512, 1024)):
            sizes: dict[str, Any] = {"batch": batch, "time": time, "features": hidden}
            yield Question("lstm", dtype, sizes | {"hidden": hidden, "extras": ()})
        for image, out in pointwise.SHAPES:
            sizes = {"positions": math.prod(image[:-1]), "features": image[-1], "out": out}
            sizes |= {"groups": 1, "channels_first": False}
            yield Question("pointwise_conv", dtype, sizes)
        for num_sampled in (1024, 8192):
            sizes = {"tokens": 1024, "features": 512, "num_sampled": num_sampled}
            yield Question("sampled_softmax_cross_entropy", dtype, sizes | {"per_token": False})
    exact = [(2048, 1024, 32_768), (8192, 4096, 131_072), (16_384, 2048, 50_257)]
    exact += [(8192, 1024, 8192), (2048, 8192, 131_072)]  # few classes, and many features
    for tokens, features, vocab_size in exact:
        sizes = {"tokens": tokens, "features": features, "vocab_size": vocab_size}
        yield Question("linear_softmax_cross_entropy", "bfloat16", sizes)


def program(
    question: Question, implementation: str, tiles: tuple[int, ...] | None, *arrays: jax.Array
) -> Any:
    """Value and gradients of the tuner's problem, by an implementation with its tiles."""
    function, _ = PROBLEMS[question.operation](question.dtype, **question.sizes)
    with dispatch.with_tiles(tiles):
        return value_and_gradients(partial(function, implementation))(*arrays)


def arguments(question: Question) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes of the problem's arrays."""
    return jax.eval_shape(lambda: PROBLEMS[question.operation](question.dtype, **question.sizes)[1])


def answer(worker: Worker, device: str, question: Question) -> dict[str, Any] | None:
    """Which implementation, and what each costs; None where the rule's does not compile."""
    operation = dispatch.operation_named(question.operation)
    with dispatch.compiling_for("tpu"):
        every = list(candidates(operation))
    # Of a Pallas kernel its default tiles: the others would take hours.
    own = dict(reversed(every))
    records: dict[str, dict[tuple[int, ...] | None, TpuRecord]] = {}
    for name, tried in every:
        if name in dispatch.PALLAS and tried != own[name]:
            continue
        # What cannot run there is refused where it is traced, and no record has its cycles.
        function, shapes = partial(program, question, name, tried), partial(arguments, question)
        record = worker.estimate(device, function, shapes)
        if isinstance(record, TpuRecord) and not record.error:
            records.setdefault(name, {})[tried] = record
    tiles = {name: _leanest(by_tiles) for name, by_tiles in records.items()}
    cycles = {name: by_tiles[tiles[name]].cycles for name, by_tiles in records.items()}
    usual = operation.preferred.get("tpu", operation.default)
    if usual not in cycles:
        return None
    cheapest = min(cycles, key=lambda name: cycles[name])
    if cycles[cheapest] > _MARGIN * cycles[usual]:
        cheapest = usual
    return {
        "operation": question.operation, "dtype": question.dtype, "sizes": question.sizes,
        "implementation": cheapest, "tiles": tiles[cheapest],
        "source": f"compiler, libtpu {importlib.metadata.version('libtpu')}",
        "estimated_cycles": {name: round(n) for name, n in cycles.items()},
    }  # fmt: skip


def _leanest(records: dict[tuple[int, ...] | None, TpuRecord]) -> tuple[int, ...] | None:
    """The tiles of the fewest temporaries among those that take nearly the fewest cycles."""
    fewest = min(record.cycles for record in records.values())
    near = {tiles: r.temp_bytes for tiles, r in records.items() if r.cycles <= _NEARLY * fewest}
    return min(near, key=lambda tiles: near[tiles])


def write(folder: Path, devices: Iterable[str] = TPUS) -> Iterator[Path]:
    """Makes each TPU's table anew; a row that was measured on a device stays."""
    with Worker() as worker:
        for device in devices:
            kind = DEVICES[device].kind
            path = folder / tuned.file_name(kind)
            rows = _measured(path)
            for question in questions():
                row = answer(worker, device, question)
                if row is not None:
                    rows.append(row)
                    progress(f"{device}: {question}: {row['estimated_cycles']}")
            folder.mkdir(exist_ok=True)
            table = {"device_kind": kind, "rows": rows}
            path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
            yield path


def _measured(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [row for row in rows if not row["source"].startswith("compiler")]
