"""What a step costs a device when vocabulary and tokens are split: a model, and what XLA compiled.

``python -m benchmarks.scaling`` prints the table of ``docs/scaling.md``. The model's bytes are held
against compiled programs in ``tests/sharding/test_communication.py``; its times are arithmetic on
the data sheet of a chip, not measurements.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective of a compiled program: its kind, and the bytes of its results on a device."""

    kind: str
    bytes: int


def collectives(program: str) -> list[Collective]:
    """The collectives in the text of a compiled program, ``compiled.as_text()``."""
    found = []
    for shapes, kind in _COLLECTIVE.findall(program):
        sizes = [
            _BYTES[dtype] * math.prod(int(n) for n in axes.split(",") if n)
            for dtype, axes in _SHAPE.findall(shapes)
        ]
        found.append(Collective(kind, sum(sizes)))
    return found


class Chip(NamedTuple):
    """A chip's limits, from its data sheet."""

    name: str
    flops: float  # a second, bfloat16
    memory_bytes_per_s: float
    wire_bytes_per_s: float  # one direction, all links
    memory_bytes: float


# Google Cloud, "TPU v5p" (2024); NVIDIA, "H100 SXM data sheet" (2023), NVLink.
CHIPS = (
    Chip("TPU v5p", 459e12, 2.765e12, 600e9, 95e9),
    Chip("H100 SXM", 989e12, 3.35e12, 450e9, 80e9),
)


class Layout(NamedTuple):
    """A step's sizes; ``tokens`` are those of one device, which has vocab / vocab_shards rows."""

    vocab_size: int
    features: int
    tokens: int
    vocab_shards: int
    token_shards: int = 1
    num_sampled: int = 0
    itemsize: int = 4  # of weights and hidden states; sums are in float32
    token_tile: int = 2048  # of the exact loss, which keeps so many rows of exponentials


class Cost(NamedTuple):
    """Of one step of the output layer on one device."""

    flops: float
    memory_bytes: float  # read or written
    wire_bytes: int  # the results of its collectives
    resident_bytes: float  # tables, gradients, optimizer state and a tile of exponentials

    def seconds(self, chip: Chip) -> dict[str, float]:
        """The time of each by the chip's limits; a ring sends twice an all-reduce's result."""
        return {
            "compute": self.flops / chip.flops,
            "memory": self.memory_bytes / chip.memory_bytes_per_s,
            "wire": 2 * self.wire_bytes / chip.wire_bytes_per_s,
        }


def exact_cost(layout: Layout) -> Cost:
    """The exact loss and all its gradients: three matmuls of tokens x features x vocab / shards."""
    rows = layout.vocab_size // layout.vocab_shards
    table, tiles = rows * layout.features, -(-layout.tokens // layout.token_tile)
    wire = layout.tokens * 4 * 3 + layout.tokens * layout.features * 4
    if layout.token_shards > 1:  # the dense gradient of a device's classes, data parallelism's own
        wire += 4 * (table + rows)
    return Cost(
        flops=3 * 2.0 * layout.tokens * table,
        # A tile of tokens reads the table twice, and reads and writes its gradient.
        # The exponentials are written and read.
        memory_bytes=tiles * table * (2.0 * layout.itemsize + 8)
        + 2.0 * layout.tokens * rows * layout.itemsize,
        wire_bytes=wire,
        # The gradient is added up in float32, in place where that is its dtype.
        resident_bytes=table * (2.0 * layout.itemsize + (4 if layout.itemsize < 4 else 0))
        + min(layout.tokens, layout.token_tile) * rows * layout.itemsize,
    )


def sampled_cost(layout: Layout) -> Cost:
    """The sampled loss with row gradients: rows gathered, differentiated, and updated in place."""
    everyone = layout.tokens * layout.token_shards
    rows = everyone + layout.num_sampled
    width = layout.features + 1  # with a bias
    wire = 4 * rows * width  # the rows, summed over the shards of the vocabulary
    if layout.token_shards > 1:
        wire += 4 * everyone  # labels for the distinct ids
        wire += 4 * layout.num_sampled * width  # gradients of the samples' rows, summed
        wire += 4 * everyone * (width + 1)  # those of the labels' rows, with their ids
    return Cost(
        flops=3 * 2.0 * layout.tokens * layout.num_sampled * layout.features,
        # Rows are read, and they and their optimizer state are read and written again.
        memory_bytes=5.0 * rows * width * layout.itemsize,
        wire_bytes=wire,
        resident_bytes=layout.vocab_size / layout.vocab_shards * width * (layout.itemsize + 4.0),
    )


def table(chip: Chip, features: int = 1024, tokens: int = 1024) -> list[str]:
    """Lines of Markdown: exact and sampled step over chips and classes, on one kind of chip."""
    lines = [
        "| chips | classes | loss | resident | compute | memory | wire |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for chips, vocab_size in ((8, 10**6), (64, 10**7), (256, 10**8), (1000, 10**9)):
        vocab_size = -(-vocab_size // chips) * chips
        # Exact: every device sees the tokens of all, so that nothing of the table is sent.
        exact = exact_cost(Layout(vocab_size, features, tokens * chips, chips))
        sampled = sampled_cost(
            Layout(vocab_size, features, tokens, chips, token_shards=chips, num_sampled=8192)
        )
        for name, cost in (("exact", exact), ("sampled", sampled)):
            seconds = cost.seconds(chip)
            fits = "" if cost.resident_bytes < chip.memory_bytes else " (does not fit)"
            times = " | ".join(_readable(seconds[what]) for what in ("compute", "memory", "wire"))
            resident = f"{cost.resident_bytes / 1e9:.2f} GB{fits}"
            lines.append(f"| {chips:,} | {vocab_size:.0e} | {name} | {resident} | {times} |")
    return lines


def _readable(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


if __name__ == "__main__":
    for chip in CHIPS:
        print(f"\n{chip.name}\n", *table(chip), sep="\n")
