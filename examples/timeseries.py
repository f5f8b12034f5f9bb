"""Speakers told by their vowels: an LSTM over [samples, time, features], and the layout error.

python -m examples.timeseries
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import typer
from flax import nnx
from rich.console import Console

from benchmarks.vowels import CHANNELS, SPEAKERS, load
from examples.shared import Output, save, shuffled
from jaxnets.models import TimeSeriesLSTM
from jaxnets.training import fit

BATCH = 30


def main(
    epochs: Annotated[int, typer.Option(help="Passes over the 270 training series.")] = 60,
    output: Output = Path("results"),
) -> None:
    """Trains on JapaneseVowels (PyPI aeon 1.6.0), 7 to 29 steps of 12 channels, 9 speakers."""
    console = Console()
    training, test = (padded(*load(part)) for part in ("TRAIN", "TEST"))
    model = TimeSeriesLSTM(CHANNELS, SPEAKERS, hidden_features=64, dropout=0.3, rngs=nnx.Rngs(0))
    console.print(
        f"series [samples, time, features] = {training[0].shape}, {test[0].shape}", markup=False
    )
    try:
        model(jnp.swapaxes(training[0], 1, 2))
    except ValueError as error:
        console.print(f"the other layout is refused:\n  {error}", markup=False)
    each, chosen = shuffled(len(training[0]), BATCH)

    def batch_at(step):
        examples = chosen(step)
        return tuple(part[examples] for part in training)

    def loss(model, batch, key):
        series, lengths, labels = batch
        logits = model(series, lengths)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}

    begun = time.perf_counter()
    fit(
        model, loss, batch_at, epochs * each, clip_norm=1.0,
        optimizer=optax.adamw(optax.cosine_onecycle_schedule(epochs * each, 5e-3)),
        key=jax.random.key(0), every=10 * each, console=console,
        evaluate=lambda model: {"accuracy": accuracy(model, test)},
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    model.eval()
    picture = save(draw(model, test), output, "timeseries")
    console.print(f"training {seconds / 60:.1f} minutes; picture: {picture}")
    console.print(f"held out, JapaneseVowels: accuracy {accuracy(model, test):.1%}")


def padded(series: list[np.ndarray], labels: np.ndarray):
    """Series [samples, time, features], their lengths and labels."""
    lengths = np.array([len(each) for each in series], np.int32)
    array = np.zeros((len(series), 29, CHANNELS), np.float32)
    for row, each in zip(array, series, strict=True):
        row[: len(each)] = each
    return array, lengths, labels.astype(np.int32)


_predict = nnx.jit(lambda model, series, lengths: model(series, lengths).argmax(-1))


def accuracy(model: TimeSeriesLSTM, test) -> float:
    """The share of the test series that are right."""
    series, lengths, labels = test
    return float(
        (np.asarray(_predict(model, *map(jnp.asarray, (series, lengths)))) == labels).mean()
    )


def draw(model: TimeSeriesLSTM, test):
    """One series of each speaker, and who was taken for whom."""
    series, lengths, labels = test
    found = np.asarray(_predict(model, *map(jnp.asarray, (series, lengths))))
    confusion = np.zeros((SPEAKERS, SPEAKERS), int)
    np.add.at(confusion, (labels, found), 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    for speaker in range(SPEAKERS):
        index = int(np.flatnonzero(labels == speaker)[0])
        left.plot(series[index, : lengths[index], 0], label=f"speaker {speaker}")
    left.set(title="first channel of one series each", xlabel="step")
    left.legend(fontsize=7)
    right.imshow(confusion, cmap="Blues")
    right.set(title="who was taken for whom", xlabel="found", ylabel="true")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    typer.run(main)
