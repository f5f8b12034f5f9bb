"""Segmentation of real nuclei by a U-Net with a 1x1 head, at the image's size and at another.

python -m examples.unet
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
from examples.shared import Output, save
from jaxnets.models import UNet
from jaxnets.training import fit

BATCH, PATCH, TRAINING = 8, 96, 352  # columns to the left are for training, the others held out


def main(
    steps: Annotated[int, typer.Option(help="Steps of eight patches.")] = 400,
    output: Output = Path("results"),
) -> None:
    """Trains on patches of one part of the micrograph, and says the overlap in the other part."""
    console = Console()
    image, ids = data.nuclei()
    mask = (ids > 0).astype(np.float32)
    inside = {part: len(np.unique(ids[:, columns])) - 1 for part, columns in PARTS.items()}
    console.print(f"nuclei: {inside['training']} for training, {inside['held out']} held out")
    model = UNet(1, 1, features=(16, 32, 64), rngs=nnx.Rngs(0))

    def batch_at(step):
        rng = np.random.default_rng(step)
        return _patches(rng, image, mask)

    def loss(model, batch, key):
        images, masks = batch
        logits = model(images)[..., 0]
        losses = optax.sigmoid_binary_cross_entropy(logits, masks).mean()
        shares = nnx.sigmoid(logits)
        overlap = 2 * (shares * masks).sum() / (shares.sum() + masks.sum() + 1e-6)
        return losses + 1 - overlap, {}

    begun = time.perf_counter()
    fit(
        model, loss, batch_at, steps,
        optimizer=optax.adamw(optax.cosine_onecycle_schedule(steps, 4e-3)),
        key=jax.random.key(0), every=max(1, steps // 5), console=console,
        evaluate=lambda model: overlaps(model, image, mask),
    )  # fmt: skip
    minutes = (time.perf_counter() - begun) / 60
    model.eval()
    picture = save(draw(model, image, mask), output, "unet")
    console.print(f"training {minutes:.1f} minutes; picture: {picture}")
    found = overlaps(model, image, mask)
    console.print(
        f"held out, nuclei: intersection over union {found['iou']:.3f}, Dice {found['dice']:.3f}"
    )


PARTS = {"training": slice(0, TRAINING), "held out": slice(TRAINING, None)}


def _patches(rng, image, mask):
    """Random patches of the training part, turned and mirrored at random."""
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for _ in range(BATCH):
        row = rng.integers(image.shape[0] - PATCH)
        column = rng.integers(TRAINING - PATCH)
        turns, mirrored = rng.integers(4), rng.integers(2)
        for array, found in ((image, images), (mask[..., None], masks)):
            patch = np.rot90(array[row : row + PATCH, column : column + PATCH], turns)
            found.append(patch[:, ::-1] if mirrored else patch)
    return np.stack(images), np.stack(masks)[..., 0]


_logits = nnx.jit(lambda model, images, size: model(images, size)[..., 0], static_argnames="size")


def overlaps(model: UNet, image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Intersection over union, and Dice, of the held-out part."""
    part = PARTS["held out"]
    found = np.asarray(_logits(model, jnp.asarray(image[None, :, part]), size=None)[0]) > 0
    wanted = mask[:, part] > 0
    both, either = (found & wanted).sum(), (found | wanted).sum()
    return {"iou": float(both / either), "dice": float(2 * both / (both + either))}


def draw(model: UNet, image: np.ndarray, mask: np.ndarray):
    """The held-out part, its nuclei, what was found, and the same asked for at another size."""
    part = image[None, :, PARTS["held out"]]
    own = nnx.sigmoid(_logits(model, jnp.asarray(part), size=None))[0]
    other = nnx.sigmoid(_logits(model, jnp.asarray(part), size=(256, 200)))[0]
    figure, grid = plt.subplots(1, 4, figsize=(11, 8))
    planes = {
        "held out": part[0, ..., 0],
        "nuclei": mask[:, PARTS["held out"]],
        "found": own,
        f"at {other.shape[0]} x {other.shape[1]}, untrained": other,
    }
    for axes, (title, plane) in zip(grid, planes.items(), strict=True):
        axes.imshow(plane, cmap="gray")
        axes.set_title(title, fontsize=9)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    typer.run(main)
