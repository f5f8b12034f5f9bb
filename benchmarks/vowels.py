"""JapaneseVowels: real series of 7 to 29 steps, padded, bucketed and packed to the same accuracy.

270 series for training and 370 for testing, 12 cepstral coefficients a step, nine speakers (Kudo et
al. 1999), out of the PyPI package ``aeon`` (BSD-3). Others report 95 to 99 % of the test set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.bars import bar
from benchmarks.harness import progress
from benchmarks.packages import fetch
from jaxnets.layers import LSTM
from jaxnets.sequences import (
    Batch,
    BatchSource,
    Packed,
    bucket_plan,
    bucketed_jit,
    length_mask,
    optimal_boundaries,
    pack,
    pack_arrays,
)

PACKAGE = "aeon==1.6.0"
FOLDER = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_"
SHA256 = {
    "TRAIN": "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
    "TEST": "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
}
SPEAKERS, CHANNELS, HIDDEN, BATCH, EPOCHS = 9, 12, 64, 30, 40
LEARNING_RATE = 5e-3  # at the start
ROW = 64  # steps of a packed row
BUCKETS = 4
QUICK = "JapaneseVowels."
LAYOUTS = ("padded", "bucketed", "packed")

Series = list[np.ndarray]


def load(part: str) -> tuple[Series, np.ndarray]:
    """The series, [time, 12] each, and their speakers, of "TRAIN" or "TEST"."""
    return read(fetch(PACKAGE, f"{FOLDER}{part}.ts", SHA256[part]))


def read(path: Path) -> tuple[Series, np.ndarray]:
    """The series and labels of a .ts file: channels by colons, values by commas, the label last."""
    series, labels = [], []
    for line in path.read_text().split("@data", 1)[1].split():
        *channels, label = line.split(":")
        values = [[float(value) for value in channel.split(",")] for channel in channels]
        series.append(np.array(values, np.float32).T)
        labels.append(int(label) - 1)
    return series, np.array(labels)


class Classifier(nnx.Module):
    """An LSTM in both directions, the mean of its outputs over each series, a linear layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.lstm = LSTM(CHANNELS, HIDDEN, bidirectional=True, rngs=rngs)
        self.head = nnx.Linear(2 * HIDDEN, SPEAKERS, rngs=rngs)

    def padded(self, batch: Batch) -> jax.Array:
        """Logits of a padded batch, [batch, speakers]."""
        (inputs,), (lengths,) = batch.sequences, batch.lengths
        outputs, _ = self.lstm(inputs, lengths=lengths)
        mask = length_mask(lengths, inputs.shape[1])
        mean = outputs.sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)
        return self.head(mean)

    def packed(self, packed: Packed, segments: int) -> jax.Array:
        """Logits of packed rows, [rows, segments, speakers]."""
        inputs, segment_ids = jnp.asarray(packed.sequences), jnp.asarray(packed.segment_ids)
        outputs, _ = self.lstm(inputs, segment_ids=segment_ids)
        own = jax.nn.one_hot(segment_ids - 1, segments)
        sums = jnp.einsum("rts,rto->rso", own, outputs)
        return self.head(sums / jnp.maximum(own.sum(1)[..., None], 1))


def loss_of(logits, labels, present):
    """The mean cross-entropy of the series that are present, and how many of them are right."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (logits.argmax(-1) == labels) & present
    return (losses * present).sum() / jnp.maximum(present.sum(), 1), right.sum()


def accuracy(layout: str) -> float:
    """The share of the test set that a model trained in ``layout`` has right."""
    return share_right(layout, *trained(layout, EPOCHS))


def trained(layout: str, epochs: int) -> tuple[nnx.GraphDef, nnx.State]:
    """A model after ``epochs`` over the training set in ``layout``: its graph and parameters."""
    graph, parameters = nnx.split(Classifier(nnx.Rngs(0)))
    gradient, batches = gradients(layout, graph)
    steps = epochs * -(-len(load("TRAIN")[0]) // BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    state = optimizer.init(parameters)

    @jax.jit
    def update(parameters, state, gradient):
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state

    for epoch in range(epochs):
        for batch in batches(epoch):
            parameters, state = update(parameters, state, gradient(parameters, batch)[0])
    return graph, parameters


def gradients(layout: str, graph: nnx.GraphDef) -> tuple[Callable, Callable]:
    """Of the mean loss of a batch in ``layout``; and a function from the epoch to its batches."""
    batches, shapes = _batches(layout, *load("TRAIN"))
    return _compiled(layout, jax.grad(_loss(layout, graph), has_aux=True), shapes), batches


def share_right(layout: str, graph: nnx.GraphDef, parameters: nnx.State) -> float:
    """The share of the test set, batched in ``layout``, that a model has right."""
    series, labels = load("TEST")
    batches, shapes = _batches(layout, series, labels)
    evaluate = _compiled(layout, _loss(layout, graph), shapes)
    return sum(int(evaluate(parameters, batch)[1]) for batch in batches(0)) / len(series)


def _loss(layout: str, graph: nnx.GraphDef) -> Callable:
    def loss(parameters, batch):
        model = nnx.merge(graph, parameters)
        if layout == "packed":
            packed, labels = batch
            return loss_of(model.packed(packed, labels.shape[1]), labels, labels >= 0)
        return loss_of(model.padded(batch), batch.rows, batch.lengths[0] > 0)

    return loss


def _compiled(layout: str, function: Callable, shapes) -> Callable:
    return jax.jit(function) if layout == "packed" else bucketed_jit(function, shapes)


def run() -> list[dict]:
    """The bars."""
    bars = []
    for layout in LAYOUTS:
        progress(f"JapaneseVowels, {layout} starts: {EPOCHS} epochs")
        share = accuracy(layout)
        progress(f"JapaneseVowels, {layout} ends: {share:.1%} of the test set")
        bars.append(bar(f"JapaneseVowels, {layout}: test accuracy", share, at_least=0.95))
    return bars


def _batches(layout: str, series: Series, labels: np.ndarray):
    """A function from the epoch to its batches, and their shapes."""
    lengths = np.array([len(s) for s in series])
    if layout == "packed":
        return lambda epoch: _packed_batches(series, labels, lengths, epoch), None
    boundaries = optimal_boundaries(lengths, BUCKETS if layout == "bucketed" else 1)
    plan = bucket_plan(lengths, boundaries, batch=BATCH)
    source = BatchSource(plan, [series], labels, epochs=EPOCHS)
    count = plan.batches
    return lambda epoch: (source[epoch * count + n] for n in range(count)), plan.shapes


def _packed_batches(series, labels, lengths, epoch):
    """Batches of rows that hold about ``BATCH`` series; absent segments have the label -1."""
    segments, rows_a_batch = ROW // 7, max(1, BATCH * int(lengths.mean()) // ROW)
    order = np.random.default_rng((0, epoch)).permutation(len(series))
    size = -(-len(order) // (-(-len(order) // BATCH)))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        rows = pack(lengths[chosen], ROW)
        for first in range(0, len(rows), 2 * rows_a_batch):
            some = rows[first : first + 2 * rows_a_batch]
            some = some + [[]] * (2 * rows_a_batch - len(some))
            own = np.full((len(some), segments), -1)
            for number, row in enumerate(some):
                own[number, : len(row)] = labels[chosen[row]] if row else ()
            yield pack_arrays([series[i] for i in chosen], some, ROW), own
