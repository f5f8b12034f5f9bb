"""How many tokens and classes a tile has: as asked for, or what fits the cache and the memory.

On CPU two things bound a tile.

- The logits of ``TOKENS`` tokens by a tile of classes are to stay in the second-level caches of
  the cores, so a machine with larger ones takes more classes at a time.
- The one pass keeps [token_tile, vocab] exponentials. A table and its gradient are read once a tile
  of tokens, so few tokens at a time are slow, up to about ``TOKENS``. From there on more of them
  cost memory only; below, a budget of memory says how many there are.

Elsewhere each tile of tokens reads and writes the whole gradient of the weights once, in memory
that is far: by the TPU compiler's estimates the program for 128 tokens takes three times the cycles
of that for 2048. There a table of 16 bits is to need no gradient in float32 either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

import jax.numpy as jnp

from jaxnets.kernels.caches import second_level_bytes
from jaxnets.kernels.checks import as_int, as_number


@dataclass(frozen=True)
class Tiles:
    """How many tokens and classes are computed at a time; what is None is chosen.

    Chosen by what the machine says of its caches, and within a budget of memory.

    Args:
      token_tile: tokens at a time in the one-pass gradient, whose temporary is [token_tile, vocab].
        Smaller saves memory, larger reads the weights less often.
      vocab_tile: classes at a time.
      memory_mb: what the one-pass gradient may take beside its arguments and results, in megabytes
        (1e6 bytes), in place of ``token_tile``. As far as it can be kept to: 8 tokens are taken at
        least, and of a table of 16 bits so many that its gradient needs no float32 copy, if that is
        larger. None, on CPU: a quarter of what all logits and their gradient would take, or 100
        where that is more, and not more than they would take. Whatever keeps no more than a tile of
        logits, as a loss a token or an evaluation does, takes a few MB and has no use for it.

    Raises:
      TypeError: a size that is no integer, or a budget that is no number.
      ValueError: a size below 1, a budget that is not above 0, or one beside ``token_tile``.

    Example:
      >>> Tiles(vocab_tile=4096)
      Tiles(token_tile=None, vocab_tile=4096, memory_mb=None)
      >>> lean = Tiles(memory_mb=25)
    """

    token_tile: int | None
    vocab_tile: int | None
    memory_mb: float | None

    def __init__(
        self,
        token_tile: SupportsIndex | None = None,
        vocab_tile: SupportsIndex | None = None,
        memory_mb: SupportsFloat | None = None,
    ) -> None:
        if memory_mb is not None:
            memory_mb = as_number("memory_mb", memory_mb)
            if not 0 < memory_mb < math.inf:
                raise ValueError(f"memory_mb must be above 0, got {memory_mb}")
            if token_tile is not None:
                raise ValueError(
                    "memory_mb must come without token_tile, which it chooses, got "
                    f"token_tile={token_tile!r}"
                )
        for name, size in (("token_tile", token_tile), ("vocab_tile", vocab_tile)):
            object.__setattr__(self, name, None if size is None else as_int(name, size, 1))
        object.__setattr__(self, "memory_mb", memory_mb)


class Sizes(NamedTuple):
    """What tiles are chosen for: those of one device."""

    tokens: int
    features: int
    vocab_size: int
    dtype: Any  # that is kept
    table_dtype: Any
    heads: int = 1  # of which logits are kept


# Tokens at a time where nothing but one tile of logits is kept, and on CPU the most otherwise: a
# tile of weights is reused by that many tokens while it is in cache.
TOKENS = 512

# Classes at a time where logits are compared and no gradient is wanted.
EVALUATED_CLASSES = 4096

# Tiles of tokens that may add to a gradient in the table's own dtype, each rounding it once: the
# error then is about twice that of one rounding.
MOST_ROUNDINGS = 8

_FEWEST_CLASSES, _MOST_CLASSES = 1024, 4096

# Off the CPU, where nothing else is known of the device; and what else is tried on one.
TOKENS_OFF_CPU = 2048
_LANES = 128  # of a TPU's vectors: classes at a time are multiples of them
OTHER_TILES_OF_LOGITS = ((1024, 8192), (1024, 16_384), (2048, 2048), (4096, 2048))

# A tile of few tokens computes little for each weight that it reads: in no budget that nobody set.
_FEWEST_TOKENS = 128
_ENOUGH_BYTES = 100e6


def check_tiles(tiles: Any) -> Tiles:
    """``tiles``, for None those that are chosen; raises unless they are :class:`Tiles`."""
    if tiles is None:
        return Tiles()
    if not isinstance(tiles, Tiles):
        raise TypeError(f"tiles must be Tiles or None, got {type(tiles).__name__}")
    return tiles


def chosen_tiles(
    tiles: Tiles, platform: str, sizes: Sizes, known: tuple[int, ...] | None = None
) -> tuple[int, int]:
    """Tokens and classes at a time: those asked for, and else what serves the machine best.

    ``known``: what a table or the tuner says of such sizes on this kind of device. More tokens are
    taken where a gradient would be rounded too often.
    """
    known_tokens, known_classes = known or (TOKENS_OFF_CPU, _MOST_CLASSES)
    memory = None if tiles.memory_mb is None else tiles.memory_mb * 1e6
    if tiles.vocab_tile is not None:
        classes = tiles.vocab_tile
    else:
        classes = _classes_in_cache() if platform == "cpu" else known_classes
        if memory is not None:
            classes = _classes_within(memory, sizes, classes)
        elif platform == "cpu" and tiles.token_tile is None:
            classes = _classes_for_one_tile(sizes, classes)
        classes = even(sizes.vocab_size, classes, 16 if platform == "cpu" else _LANES)
    if tiles.token_tile is not None:
        return tiles.token_tile, classes
    most = TOKENS if platform == "cpu" else max(known_tokens, -(-sizes.tokens // MOST_ROUNDINGS))
    if memory is not None or platform == "cpu":
        fewest = _FEWEST_TOKENS if memory is None else 8
        within = _tokens_within(_generous(sizes) if memory is None else memory, sizes, classes)
        most = min(most, max(fewest, within))
        if dividing := _dividing(sizes.tokens, most):
            return dividing, classes
    return even(sizes.tokens, most), classes


def even(count: int, most: int, multiple: int = 16) -> int:
    """The size of equal tiles that cover ``count``, each at most ``most``.

    Tiles of ``most`` would compute up to twice as much as there is, where few cover it. Several are
    multiples of ``multiple``, or of what ``most`` has of it, as vectors like them.
    """
    if count <= most:
        return max(1, count)
    multiple = math.gcd(multiple, most)
    size = -(-count // -(-count // most))
    return -(-size // multiple) * multiple


def _dividing(count: int, most: int) -> int | None:
    """The largest multiple of 8 that divides ``count``, is at most ``most`` and not below half.

    Nothing is padded then, which would be a copy.
    """
    sizes = range(most // 8 * 8, max(most // 2, 8) - 1, -8)
    return next((size for size in sizes if count % size == 0), None)


def _classes_in_cache() -> int:
    """A power of two, for ``TOKENS`` of which a tile of float32 logits fits the caches."""
    fitting = max(1, second_level_bytes() // (4 * TOKENS))
    return min(_MOST_CLASSES, max(_FEWEST_CLASSES, 1 << (fitting.bit_length() - 1)))


def _classes_within(memory: float, sizes: Sizes, classes: int) -> int:
    """As many that their tile takes an eighth of ``memory``: the rest is for tokens."""
    most = memory / 8
    within = _most_classes(classes, lambda fewer: 4 * fewer * (sizes.features + 3 * 64) <= most)
    return within or min(classes, _FEWEST_CLASSES)


def _classes_for_one_tile(sizes: Sizes, classes: int) -> int:
    """As many that all tokens are one tile within what may be taken, if there are any."""
    if sizes.tokens > TOKENS:
        return classes
    generous = _generous(sizes)
    one_tile = _most_classes(
        classes, lambda fewer: _tokens_within(generous, sizes, fewer) >= sizes.tokens
    )
    return one_tile or classes


def _most_classes(classes: int, fit: Callable[[int], bool]) -> int | None:
    """Of ``classes`` and its halves, not below ``_FEWEST_CLASSES``, the most that ``fit``."""
    while not fit(classes):
        classes //= 2
        if classes < _FEWEST_CLASSES:
            return None
    return classes


def _generous(sizes: Sizes) -> float:
    """The bytes that the one pass may take where nobody set a budget."""
    whole = 2.0 * jnp.dtype(sizes.dtype).itemsize * sizes.tokens * sizes.vocab_size * sizes.heads
    return min(whole, max(whole / 4, _ENOUGH_BYTES))


def _tokens_within(memory: float, sizes: Sizes, classes: int) -> int:
    """How many tokens the one pass may take at a time, in ``memory`` bytes; a multiple of 8.

    It keeps the exponentials, three tiles of logits and the tile of weights they come from, and
    of the tokens their hidden states and the gradients, four arrays at a time.
    """
    kept = jnp.dtype(sizes.dtype).itemsize
    summed = max(4, kept)
    classes = min(classes, sizes.vocab_size)
    a_token = kept * sizes.vocab_size * sizes.heads + summed * (3 * classes + 4 * sizes.features)
    within = int((memory - summed * classes * sizes.features) // a_token) // 8 * 8
    rounded_once = -(-sizes.tokens // MOST_ROUNDINGS)
    if jnp.dtype(sizes.table_dtype).itemsize < summed and within < rounded_once:
        # More tiles than may round the table's gradient add to a float32 copy of it.
        copied = summed * sizes.features * sizes.vocab_size
        if copied > (rounded_once - within) * a_token:
            return rounded_once
    return within
