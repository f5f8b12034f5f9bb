"""Digits of 28 x 28 encoded in 16 numbers and decoded at 42 x 42.

python -m examples.autoencoder
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

from examples import data
from examples.shared import Output, save, shuffled
from jaxnets.models import Autoencoder
from jaxnets.training import fit

BATCH, CODE = 128, 16


def main(
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 15,
    output: Output = Path("results"),
) -> None:
    """Trains, and compares the held-out error with that of 16 principal components."""
    console = Console()
    name, split = data.digits()
    side = split.inputs.shape[1]
    larger = side * 3 // 2
    wanted, test_wanted = (enlarged(part, larger) for part in (split.inputs, split.test_inputs))
    console.print(f"{name}: {side} x {side} to {CODE} numbers to {larger} x {larger}")
    model = Autoencoder((side, side), (larger, larger), code=CODE, rngs=nnx.Rngs(0))
    each, chosen = shuffled(len(split.inputs), BATCH)

    def batch_at(step):
        examples = chosen(step)
        return split.inputs[examples], wanted[examples]

    def loss(model, batch, key):
        images, large = batch
        return ((model(images) - large) ** 2).mean(), {}

    begun = time.perf_counter()
    fit(
        model, loss, batch_at, epochs * each,
        optimizer=optax.adam(optax.cosine_onecycle_schedule(epochs * each, 3e-3)),
        key=jax.random.key(0), every=3 * each, console=console,
        evaluate=lambda model: {"held_out": error(model, split, test_wanted)},
    )  # fmt: skip
    minutes = (time.perf_counter() - begun) / 60
    model.eval()
    picture = save(draw(model, split), output, "autoencoder")
    components = principal_components(wanted, test_wanted)
    console.print(f"training {minutes:.1f} minutes; picture: {picture}")
    console.print(
        f"held out, {name}: mean squared error {error(model, split, test_wanted):.4f}; "
        f"{CODE} principal components of the large images {components:.4f}"
    )


def enlarged(images: np.ndarray, side: int) -> np.ndarray:
    """Images at ``side`` x ``side``, bicubic."""
    shape = (len(images), side, side, images.shape[-1])
    return np.clip(np.asarray(jax.image.resize(images, shape, "cubic")), 0, 1)


_decoded = nnx.jit(lambda model, images: model(images))


def error(model: Autoencoder, split: data.Split, wanted: np.ndarray) -> float:
    """The mean squared error of the held-out images."""
    return float(((_decoded(model, jnp.asarray(split.test_inputs)) - wanted) ** 2).mean())


def principal_components(training: np.ndarray, held_out: np.ndarray) -> float:
    """The error of as many principal components, which is the best that a linear code can do."""
    flat, test = (part.reshape(len(part), -1) for part in (training, held_out))
    mean = flat.mean(0)
    _, basis = np.linalg.eigh(np.cov((flat - mean).T))
    basis = basis[:, -CODE:]
    return float((((test - mean) @ basis @ basis.T - (test - mean)) ** 2).mean())


def draw(model: Autoencoder, split: data.Split):
    """Held-out digits and what is decoded of their codes, each at its own size."""
    images = split.test_inputs[:10]
    decoded = np.asarray(_decoded(model, jnp.asarray(split.test_inputs)))[:10]
    figure, grid = plt.subplots(2, 10, figsize=(12, 3))
    for row, planes in zip(grid, (images, decoded), strict=True):
        for axes, plane in zip(row, planes, strict=True):
            axes.imshow(plane[..., 0], cmap="gray", vmin=0, vmax=1)
            axes.tick_params(labelsize=6)
    figure.suptitle(
        f"{images.shape[1]} x {images.shape[2]}, and decoded at {decoded.shape[1]} x "
        f"{decoded.shape[2]}"
    )
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    typer.run(main)
