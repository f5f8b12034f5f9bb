"""An epoch over real sentences of unequal length: padded, bucketed and packed.

A next-word model of the most frequent words of the Spanish text: embedding, LSTM, exact softmax.
Each way of batching trains the same model from the same start on the same sentences, once through;
its time has all its compiles in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import corpus
from benchmarks.bars import bar
from benchmarks.harness import Suite, normal, progress
from jaxnets.kernels import LSTMParameters, linear_softmax_cross_entropy, lstm
from jaxnets.sequences import (
    Batch,
    BatchSource,
    boundaries_every,
    bucket_plan,
    bucketed_jit,
    length_mask,
    optimal_boundaries,
    pack,
    pack_arrays,
    quantile_boundaries,
)

WORDS, FEATURES, HIDDEN = 2000, 128, 256
BATCH = 64  # sentences, or as many steps as 64 sentences of mean length have
LEARNING_RATE = 2e-3
PADDED = "padded to the longest"
STRIDES: dict[Suite, int] = {"quick": 16, "standard": 2, "full": 1}  # of the sentences
QUICK = (
    "Epoch: every 16th sentence, 3 ways to batch of 9, no plans. Compiles weigh more in so short "
    "an epoch, so its ratio has no goal here."
)


class Way(NamedTuple):
    """One way to batch: its batches in order, and a step that may be called with each."""

    name: str
    batches: list[Any]
    compiled: Callable[[Callable], Any]  # a jitted or bucketed function with a count of compiles
    steps: int  # of an epoch, padding included


class Counted:
    """``jax.jit`` with a count of its compiles, as ``bucketed_jit`` has."""

    def __init__(self, function: Callable):
        self.compiles = 0

        def counted(*args):
            self.compiles += 1
            return function(*args)

        self._jitted = jax.jit(counted)

    def __call__(self, *args):
        return self._jitted(*args)


def sentences(suite: Suite) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Word ids of each verse for training and validation, the rare words one id, ends marked."""
    parts = corpus.encode_sentences(corpus.verses("v"))
    training, validation = (
        [np.where(ids < WORDS, ids, corpus.UNKNOWN).astype(np.int32) for ids in part]
        for part in parts
    )
    return training[:: STRIDES[suite]], validation[:: STRIDES[suite]]


def initial() -> dict[str, Any]:
    """The parameters that every way starts from."""

    def scaled(seed, *shape):
        return normal(seed, *shape) * shape[0] ** -0.5

    bias = jnp.zeros(4 * HIDDEN).at[HIDDEN : 2 * HIDDEN].set(1.0)
    return {
        "embedding": scaled(0, WORDS, FEATURES) * WORDS**0.5 / 10,
        "lstm": LSTMParameters(
            scaled(1, FEATURES, 4 * HIDDEN), scaled(2, HIDDEN, 4 * HIDDEN), bias
        ),
        "output": scaled(3, WORDS, HIDDEN) * (WORDS / HIDDEN) ** 0.5,
        "bias": jnp.zeros(WORDS),
    }


def summed_loss(parameters, ids, labels, weights, **marks):
    """The sum of the words' losses, and how many words there are; ``ids [batch, time]``."""
    outputs, _ = lstm(parameters["embedding"][ids], None, parameters["lstm"], **marks)
    loss = linear_softmax_cross_entropy(
        outputs,
        parameters["output"],
        labels,
        bias=parameters["bias"],
        token_weights=weights,
        reduction="sum",
    )
    return loss, weights.sum()


def following(ids):
    """The word after each, of padded ids: the label of a step."""
    return jnp.pad(ids[:, 1:], ((0, 0), (0, 1)))


def padded_loss(parameters, batch: Batch, *, lengths: bool = False):
    """Of a padded batch. Padding on the right changes nothing before it, so no lengths needed."""
    (ids,), (length,) = batch.sequences, batch.lengths
    weights = length_mask(length - 1, ids.shape[1]).astype(jnp.float32)
    marks = {"lengths": length} if lengths else {}
    return summed_loss(parameters, ids, following(ids), weights, **marks)


def packed_loss(parameters, batch):
    """Of packed rows: a segment's last word has no label."""
    ids, segments = batch
    same = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (0, 1))) & (segments > 0)
    return summed_loss(
        parameters, ids, following(ids), same.astype(jnp.float32), segment_ids=segments
    )


def ways(training: list[np.ndarray], suite: Suite) -> Iterator[tuple[Way, Callable]]:
    """Each way with its loss."""
    lengths = np.array([len(ids) for ids in training])
    longest = int(lengths.max())
    budget = BATCH * int(lengths.mean())

    def planned(name, boundaries, **options):
        plan = bucket_plan(lengths, boundaries, **options)
        source = BatchSource(plan, [training])
        batches = [source[i] for i in range(len(source))]
        return Way(name, batches, lambda f: bucketed_jit(f, plan.shapes), plan.cost)

    yield planned(PADDED, (longest,), batch=BATCH), padded_loss
    if suite != "quick":
        yield (
            planned("the same, lengths given", (longest,), batch=BATCH),
            lambda parameters, batch: padded_loss(parameters, batch, lengths=True),
        )
        whole = bucket_plan(lengths, (longest,), batch=BATCH)
        source = BatchSource(whole, [training])
        cut = [_cut(source[i]) for i in range(len(source))]
        steps = sum(batch.sequences[0].size for batch in cut)
        yield Way("padded per batch", cut, Counted, steps), padded_loss
    quantiles, optimal = ((), (4,)) if suite == "quick" else ((4, 8, 16), (4, 8))
    buckets = {f"{k} quantile buckets": quantile_boundaries(lengths, k) for k in quantiles}
    buckets |= {f"{k} optimal buckets": optimal_boundaries(lengths, k) for k in optimal}
    if suite == "full":
        buckets["buckets every 16 steps"] = boundaries_every(16, longest)
        buckets["16 optimal buckets"] = optimal_boundaries(lengths, 16)
    for name, boundaries in buckets.items():
        yield planned(name, boundaries, token_budget=budget), padded_loss
    yield _packed(training, lengths, 128, budget), packed_loss


def _cut(batch: Batch) -> Batch:
    time = int(batch.lengths[0].max())
    return batch._replace(sequences=(batch.sequences[0][:, :time],))


def _packed(training, lengths, row: int, budget: int) -> Way:
    """Rows packed from stretches of shuffled sentences, so that an epoch stays shuffled."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(training))
    rows: list[list[int]] = []
    stretch = 1024
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        rows += [part[packed].tolist() for packed in pack(lengths[part], row)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    size = max(1, budget // row)
    batches = []
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        some += [[]] * (size - len(some))
        packed = pack_arrays(training, some, row)
        batches.append((packed.sequences, packed.segment_ids))
    return Way(f"packed, rows of {row}", batches, Counted, len(batches) * size * row)


def train(way: Way, loss: Callable, validation: Batch, limit: int | None = None) -> dict:
    """One epoch, or its first ``limit`` batches: seconds with compiles, steps, final loss."""
    optimizer = optax.adam(LEARNING_RATE)

    def step(parameters, state, batch):
        def mean(parameters):
            total, count = loss(parameters, batch)
            return total / jnp.maximum(count, 1)

        gradient = jax.grad(mean)(parameters)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state

    parameters = initial()
    state = optimizer.init(parameters)
    compiled = way.compiled(step)
    batches = way.batches[:limit]
    progress(f"epoch, {way.name} starts: {len(batches)} batches")
    start, stalls = time.perf_counter(), 0.0
    for batch in batches:
        before = compiled.compiles
        called = time.perf_counter()
        parameters, state = compiled(parameters, state, batch)
        if compiled.compiles > before:
            stalls += time.perf_counter() - called  # a call returns once compiled, before it ran
    jax.block_until_ready(parameters)
    seconds = time.perf_counter() - start
    progress(f"epoch, {way.name} took {seconds:.1f} s, of them {stalls:.1f} s compiling")
    total, count = jax.jit(padded_loss)(parameters, validation)
    return {
        "seconds": seconds, "compile_s": stalls, "compiles": compiled.compiles,
        "steps": way.steps, "updates": len(batches), "perplexity": float(jnp.exp(total / count)),
    }  # fmt: skip


def same_loss(training: list[np.ndarray], suite: Suite) -> float:
    """The largest relative difference of the mean loss of the same sentences, batched each way."""
    progress("mean loss of the same sentences, each way")
    some = training[:: max(1, len(training) // 512)]
    words = sum(len(ids) - 1 for ids in some)
    parameters, means = initial(), []
    for way, loss in ways(some, suite):
        compiled = way.compiled(loss)
        sums = [compiled(parameters, batch) for batch in way.batches]
        assert sum(float(count) for _, count in sums) == words, way.name
        means.append(sum(float(total) for total, _ in sums) / words)
    return (max(means) - min(means)) / min(means)


def plans(lengths_of: dict[str, np.ndarray]) -> Iterable[dict]:
    """What plans cost on each distribution of lengths, before anything runs."""
    for name, lengths in lengths_of.items():
        longest = int(lengths.max())
        budget = BATCH * int(lengths.mean())
        boundaries = {
            PADDED: (longest,),
            **{f"{k} quantile buckets": quantile_boundaries(lengths, k) for k in (4, 8, 16)},
            **{f"{k} optimal buckets": optimal_boundaries(lengths, k) for k in (4, 8, 16)},
        }
        for way, bounds in boundaries.items():
            plan = bucket_plan(lengths, bounds, token_budget=max(budget, longest))
            yield {
                "lengths": name, "way": way, "padding": plan.padding_share,
                "compiles": plan.compiles, "batches": plan.batches, "steps": plan.cost,
            }  # fmt: skip


def distributions(training: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Real lengths, those of ECG recordings, and named distributions."""
    rng = np.random.default_rng(0)
    return {
        "verses": np.array([len(ids) for ids in training]),
        "ECG-like, uniform 9,000 to 18,000": rng.integers(9_000, 18_001, 4_000),
        "log-normal, median 50": np.clip(rng.lognormal(np.log(50), 0.8, 20_000), 1, 1000).astype(
            int
        ),
        "uniform 1 to 200": rng.integers(1, 201, 20_000),
    }


def run(suite: Suite) -> tuple[dict, list[dict]]:
    """The table of epochs with the plans, and the bars."""
    training, held_out = sentences(suite)
    longest = max(len(ids) for ids in held_out)
    plan = bucket_plan([len(ids) for ids in held_out], (longest,), batch=len(held_out))
    validation = BatchSource(plan, [held_out])[0]
    table = {}
    for way, loss in ways(training, suite):
        table[way.name] = train(way, loss, validation)
    tokens = sum(len(ids) for ids in training)
    for row in table.values():
        row["padding"] = 1 - tokens / row["steps"]
    seconds = {name: row["seconds"] for name, row in table.items()}
    buckets = {name: s for name, s in seconds.items() if "buckets" in name}
    best = min(buckets, key=lambda name: buckets[name])
    packed = next(s for name, s in seconds.items() if name.startswith("packed"))
    bars = [
        bar(
            f"epoch, compiles included: {PADDED} / {best}",
            seconds[PADDED] / seconds[best],
            at_least=None if suite == "quick" else 2,
        ),
        bar(f"epoch, compiles included: {PADDED} / packed", seconds[PADDED] / packed),
        bar(
            "mean loss of the same sentences, each way: largest relative difference",
            same_loss(training, suite),
        ),
    ]
    result = {
        "corpus": f"Reina-Valera (Spanish, public domain), package {corpus.PACKAGE}",
        "sentences": len(training), "tokens": tokens,
        "longest": int(max(len(ids) for ids in training)), "ways": table,
        "plans": [] if suite == "quick" else list(plans(distributions(training))),
    }  # fmt: skip
    return result, bars
