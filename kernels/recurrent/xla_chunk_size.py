"""How many steps a chunk has: chosen by shape, from what was measured on XLA's CPU backend."""

from __future__ import annotations

import math

from jaxnets.kernels.caches import last_level_bytes

# A chunk's matmuls want about so many rows (steps times batch): fewer are slower, and more gain
# nothing but memory.
ROWS = 1024
# Gates that fit here stay in cache on any machine, and one chunk saves copying them and adding up
# the kernels' gradients.
WHOLE_BYTES = 16 * 2**20
# Beyond, one chunk was not timed, and its copies of whole sequences add a third to the memory.
MOST_WHOLE_BYTES = 64 * 2**20
# Gates of so many bytes are computed again on the way back, where that is cheap.
LARGE_BYTES = 256 * 2**20
# Steps written out in a loop without gradient: slices at fixed places are free.
WRITTEN_OUT = (8, 4, 5, 6, 7, 3, 2)
# An input kernel of so many bytes, which the recurrent one beside it pushes out of a core's cache,
# is read anew for each chunk: one of fewer than ``READ_ROWS`` rows does not make up for it.
LARGE_KERNEL_BYTES = 2 * 2**20
READ_ROWS = 128


def stages_pay(batch: int, time: int, gates: int) -> bool:
    """Whether rows with lengths are sorted and run in stages (``xla_rows.py``).

    The lengths are not known here. Where the gates fit in cache, one chunk in which padding is
    masked costs about as much as without lengths, and chunks, sorted or not, up to twice as much.
    Beyond, there are chunks anyhow, and with lengths from half to full stages cost nothing; with a
    mean of a quarter they take half of the time. Of fewer rows too few can be left out.
    """
    return batch >= 32 and 4 * batch * time * gates >= WHOLE_BYTES


def whole_bytes(platform: str) -> int:
    """Gates of fewer bytes are one chunk: on CPU as many as half of its last cache holds.

    On a Xeon with 300 MB of it one chunk took 0.94 and 0.84 of the time, at gates of 17 and 34 MB.
    """
    if platform != "cpu":
        return WHOLE_BYTES
    return min(max(WHOLE_BYTES, last_level_bytes() // 2), MOST_WHOLE_BYTES)


def recomputes(batch: int, time: int, gates: int, width: int) -> bool:
    """Whether the gradient computes the gates again, from the carries of chunks.

    With few features and outputs, ``width`` together, it takes 0 to 25 % more time, and the memory
    of a chunk in place of the whole sequence's: worth it where that is large.
    """
    return width <= 256 and 4 * batch * time * gates >= LARGE_BYTES


def steps(batch: int, time: int, gates: int, *, staged: bool, whole: int = WHOLE_BYTES) -> int:
    """Steps of a chunk where a gradient is wanted; all, where gates are of less than ``whole``."""
    if staged:  # a chunk ends late for most rows, so shorter ones waste less
        return even(time, max(8, ROWS // 2 // batch))
    if 4 * batch * time * gates < whole:
        return time
    return even(time, ROWS // batch)


def without_gradient(batch: int, time: int, features: int, gates: int, fallback: int) -> int:
    """Steps of a chunk of which nothing is kept: few and written out where they divide the time.

    With a large input kernel more of them, in a loop, where a batch of at least 16 would have few
    rows: 10 to 20 % less time at 512 features and outputs. Smaller batches gain nothing by it.
    """
    count = next((count for count in WRITTEN_OUT if time % count == 0), fallback)
    is_large = 4 * features * gates >= LARGE_KERNEL_BYTES
    if is_large and batch >= 16 and count * batch < READ_ROWS:
        longer = even(time, ROWS // 2 // batch)
        return longer if time % longer == 0 else count
    return count


def square_root(batch: int, time: int) -> int:
    """Steps of a chunk for the least memory: about the square root of the time.

    The carries kept are one a chunk and the gates one chunk's, so memory grows with the square root
    (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 4).
    """
    return even(time, max(math.isqrt(time), ROWS // 4 // batch))


def even(time: int, wanted: int) -> int:
    """About ``wanted``: a divisor of ``time`` if one is near, else chunks as equal as can be."""
    wanted = min(max(wanted, 1), time)
    near = [n for n in range(-(-wanted * 2 // 3), wanted * 3 // 2 + 1) if time % n == 0]
    if near:
        return min(near, key=lambda n: abs(n - wanted))
    return -(-time // -(-time // wanted))
