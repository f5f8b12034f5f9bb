"""Handwritten digits by a convolutional network, its filters and activation maps as a picture.

python -m examples.digits
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import typer
from flax import nnx
from rich.console import Console

from examples import data
from examples.shared import Output, save, shuffled
from jaxnets.models.digits import DigitsCNN, random_shift
from jaxnets.training import fit

BATCH = 128


def main(
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 12,
    small: Annotated[bool, typer.Option("--small", help="scikit-learn's 8x8 digits.")] = False,
    output: Output = Path("results"),
) -> None:
    """Trains, and says the share of the held-out digits that it has right."""
    console = Console()
    name, split = ("scikit-learn's digits", data.scikit_learn_digits()) if small else data.digits()
    side = split.inputs.shape[1]
    most = 2 if side > 8 else 1
    epochs = epochs if side > 8 else 4 * epochs  # they are fewer, and 1/12 of the work each
    console.print(
        f"{name}: {len(split.inputs):,} for training, {len(split.test_inputs):,} held out"
    )
    model = DigitsCNN((side, side), 10, rngs=nnx.Rngs(0))
    each, chosen = shuffled(len(split.inputs), BATCH)

    def batch_at(step):
        examples = chosen(step)
        return split.inputs[examples], split.labels[examples]

    def loss(model, batch, key):
        images, labels = batch
        logits = model(random_shift(images, key, most))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}

    begun = time.perf_counter()
    fit(
        model, loss, batch_at, epochs * each,
        optimizer=optax.adamw(optax.cosine_onecycle_schedule(epochs * each, 3e-3)),
        key=jax.random.key(0), evaluate=lambda model: {"accuracy": accuracy(model, split)},
        every=2 * each, console=console,
    )  # fmt: skip
    minutes = (time.perf_counter() - begun) / 60
    model.eval()
    picture = save(draw(model, split), output, "digits")
    console.print(f"training {minutes:.1f} minutes; picture: {picture}")
    console.print(f"held out, {name}: accuracy {accuracy(model, split):.2%}")


_predict = nnx.jit(lambda model, images: model(images).argmax(-1))


def accuracy(model: DigitsCNN, split: data.Split) -> float:
    """The share of the held-out images that are right."""
    parts = np.array_split(split.test_inputs, max(1, len(split.test_inputs) // 500))
    found = np.concatenate([_predict(model, jnp.asarray(part)) for part in parts])
    return float((found == split.test_labels).mean())


def draw(model: DigitsCNN, split: data.Split):
    """Filters, the maps of each stage for one digit, and the classifier sliding over four."""
    image = jnp.asarray(split.test_inputs[:1])
    rows = [np.moveaxis(np.asarray(model.filters()), -1, 0)]
    rows += [np.moveaxis(np.asarray(maps[0]), -1, 0) for maps in model.activations(image)]
    row_of_digits = np.concatenate(list(split.test_inputs[:4]), axis=1)
    slid = np.asarray(model.slide(jnp.asarray(row_of_digits[None]))[0, 0])
    figure = plt.figure(figsize=(11, 8))
    halves: Any = figure.subfigures(2, 1, height_ratios=(3, 2))
    top, bottom = halves
    grid = top.subplots(len(rows), 16)
    for axes_row, maps in zip(grid, rows, strict=True):
        for axes, plane in zip(axes_row, maps, strict=False):
            axes.imshow(plane, cmap="gray")
            axes.axis("off")
    top.suptitle("filters of the first convolution; activation maps of each stage")
    above, below = bottom.subplots(2, 1)
    above.imshow(row_of_digits[..., 0], cmap="gray", aspect="auto")
    above.axis("off")
    below.imshow(jax.nn.softmax(slid).T, cmap="viridis", aspect="auto")
    below.set(ylabel="class", xlabel="place", yticks=range(10))
    bottom.suptitle("the dense head as a convolution, sliding over four digits")
    return figure


if __name__ == "__main__":
    typer.run(main)
