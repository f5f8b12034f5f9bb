"""Histories of users for recommenders: MovieLens 100K out of a wheel, or generated ones.

The wheel of the PyPI package ``recbole`` (MIT) is downloaded with pip, not installed. Its data are
those of GroupLens, whose terms allow research and no redistribution: they stay in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.packages import CorpusError, fetch
from jaxnets.sequences import pack, pack_arrays

PACKAGE = "recbole==1.2.1"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"


class Histories(NamedTuple):
    """Of each user the items by time, ids from 0, and how many items there are."""

    name: str
    users: list[np.ndarray]
    items: int


class Split(NamedTuple):
    """Leave-last-out in time: what each user did up to the last two events, and these."""

    training: list[np.ndarray]
    validation: np.ndarray  # [users]: the last event but one
    test: np.ndarray  # [users]: the last event


def movielens() -> Histories:
    """MovieLens 100K: 943 users, 1,682 movies, 100,000 ratings, each an event whatever its stars.

    Raises:
      CorpusError: the package could not be had.
    """
    return read(fetch(PACKAGE, MEMBER, SHA256))


def read(path: Path) -> Histories:
    """The histories of a file in RecBole's format; events of one second in the file's order."""
    user, item, _, time = np.loadtxt(path, np.int64, delimiter="\t", skiprows=1).T
    order = np.lexsort((np.arange(len(time)), time, user))
    _, starts = np.unique(user[order], return_index=True)
    ids, items = np.unique(item, return_inverse=True)
    users = np.split(items[order].astype(np.int32), starts[1:])
    return Histories("MovieLens 100K", users, len(ids))


def write(data: Histories, path: Path) -> None:
    """The same format, with an event's place in its history for its time."""
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, history in enumerate(data.users):
            file.writelines(f"{user}\t{item}\t{place}\n" for place, item in enumerate(history))


def generated(users: int = 1000, items: int = 2000, seed: int = 0) -> Histories:
    """Histories in which half of the items follow from the one before, by a fixed permutation.

    The other half is drawn by Zipf's law over ids that drift: a later user has other favorites.
    """
    rng = np.random.default_rng(seed)
    follows = rng.permutation(items)
    histories = []
    for user in range(users):
        length = int(rng.integers(10, 60))
        drawn = zipf(rng, length, items) + user * items // (4 * users)
        history = np.empty(length, np.int32)
        for step, item in enumerate(drawn % items):
            follow = step and rng.uniform() < 0.5
            history[step] = follows[history[step - 1]] if follow else item
        histories.append(history)
    return Histories("generated histories", histories, items)


def zipf(rng: np.random.Generator, shape: int | tuple[int, ...], items: int) -> np.ndarray:
    """Ids in [0, items) of a probability that falls as 1 / (id + 1), about."""
    return np.expm1(rng.uniform(size=shape) * np.log1p(items)).astype(np.int64).clip(0, items - 1)


def histories() -> Histories:
    """MovieLens, or generated histories where the package can't be had, which is said."""
    try:
        return movielens()
    except CorpusError as error:
        print(f"{error}\nso generated histories are used in place of MovieLens 100K")
        return generated()


def split(users: list[np.ndarray]) -> Split:
    """Each user's last event is the test's, the last but one the validation's."""
    return Split(
        [history[:-2] for history in users],
        np.array([history[-2] for history in users], np.int32),
        np.array([history[-1] for history in users], np.int32),
    )


def windows(users: list[np.ndarray], time: int) -> list[np.ndarray]:
    """Histories cut from their end into pieces of at most ``time`` events, at least two.

    A piece ends with the event that the next begins with, so that each is once a label.
    """
    pieces = []
    for history in users:
        ends = range(len(history), 1, 1 - time)
        pieces += [history[max(0, end - time) : end] for end in ends]
    return pieces


def last_events(users: list[np.ndarray], time: int) -> tuple[np.ndarray, np.ndarray]:
    """The last events of each user, [users, time] padded on the right, and their lengths."""
    array, lengths = np.zeros((len(users), time), np.int32), np.zeros(len(users), np.int32)
    for number, history in enumerate(users):
        recent = history[-time:]
        array[number, : len(recent)], lengths[number] = recent, len(recent)
    return array, lengths


def packed_batches(
    pieces: list[np.ndarray], time: int, rows: int, seed: int
) -> tuple[Callable[[int], tuple[np.ndarray, np.ndarray]], int]:
    """A function from the step to ids and segments [rows, time], and the steps of an epoch."""
    packed = pack([len(piece) for piece in pieces], time)
    each = -(-len(packed) // rows)

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, number = divmod(step, each)
        order = np.random.default_rng((seed, epoch)).permutation(len(packed))
        chosen = [packed[i] for i in order[number * rows : (number + 1) * rows]]
        batch = pack_arrays(pieces, chosen + [[]] * (rows - len(chosen)), time)
        return batch.sequences, batch.segment_ids

    return batch_at, each
