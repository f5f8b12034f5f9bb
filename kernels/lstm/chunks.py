"""How many steps a chunk has: chosen by shape, from what was measured on XLA's CPU backend."""

from __future__ import annotations

import math

# A chunk's matmuls want about so many rows (steps times batch): fewer are slower, and more gain
# nothing but memory.
ROWS = 1024
# Gates that fit here stay in cache, so one chunk saves adding up the kernels' gradients.
WHOLE_BYTES = 16 * 2**20
# Steps written out in a loop without gradient: slices at fixed places are free.
WRITTEN_OUT = (4, 5, 3, 6, 7, 8, 2)


def with_gradient(batch: int, time: int, gates: int, *, lengths: bool) -> int:
    """Steps of a chunk whose gates are kept."""
    if lengths:  # a chunk ends late for most rows, so shorter ones waste less
        return even(time, max(4, ROWS // 4 // batch))
    if 4 * batch * time * gates < WHOLE_BYTES:
        return time
    return even(time, ROWS // batch)


def without_gradient(time: int, fallback: int) -> int:
    """Steps of a chunk of which nothing is kept: few and written out where they divide the time."""
    return next((steps for steps in WRITTEN_OUT if time % steps == 0), fallback)


def recomputed(batch: int, time: int) -> int:
    """Steps of a chunk whose gates are computed twice: about the square root of the time.

    The carries kept are one a chunk and the gates one chunk's, so memory grows with the square root
    (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 4).
    """
    return even(time, max(math.isqrt(time), ROWS // 4 // batch))


def even(time: int, steps: int) -> int:
    """About ``steps``, so that the chunks are equal and little is padded."""
    steps = min(max(steps, 1), time)
    count = -(-time // steps)
    return -(-time // count)
