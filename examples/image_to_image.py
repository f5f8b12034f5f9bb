"""Photographs enlarged to any size by a residual network whose output is larger than its input.

python -m examples.image_to_image
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
from jaxnets.layers import resize
from jaxnets.models import ImageToImage
from jaxnets.training import fit

BATCH, PATCH, SCALE = 8, 64, 2
HELD_OUT = "chelsea"


def main(
    steps: Annotated[int, typer.Option(help="Steps of eight patches.")] = 1000,
    output: Output = Path("results"),
) -> None:
    """Trains on three photographs, and enlarges a fourth."""
    console = Console()
    photographs = data.photographs()
    held_out = photographs.pop(HELD_OUT)[:300, :450]  # even, so that no half pixel is cut off
    console.print(f"training: {', '.join(photographs)}; held out: {HELD_OUT}")
    model = ImageToImage(3, 3, features=32, blocks=3, rngs=nnx.Rngs(0))
    names = list(photographs)

    def batch_at(step):
        rng = np.random.default_rng(step)
        patches = []
        for _ in range(BATCH):
            photograph = photographs[names[rng.integers(len(names))]]
            row, column = (rng.integers(size - PATCH) for size in photograph.shape[:2])
            patch = np.rot90(
                photograph[row : row + PATCH, column : column + PATCH], int(rng.integers(4))
            )
            patches.append(patch)
        return np.stack(patches)

    def loss(model, patches, key):
        found = model(shrink(patches), (PATCH, PATCH))
        return jnp.abs(found - patches).mean(), {}

    begun = time.perf_counter()
    fit(
        model, loss, batch_at, steps,
        optimizer=optax.adam(optax.cosine_onecycle_schedule(steps, 2e-3)),
        key=jax.random.key(0), every=max(1, steps // 5), console=console, clip_norm=1.0,
        evaluate=lambda model: {"psnr": psnr(_enlarge(model, held_out), held_out)},
    )  # fmt: skip
    minutes = (time.perf_counter() - begun) / 60
    model.eval()
    small = shrink(jnp.asarray(held_out[None]))
    ways = {
        "input": small[0],
        "bilinear": resize(small, held_out.shape[:2])[0],
        "bicubic": jax.image.resize(small, (1, *held_out.shape), "cubic")[0],
        "network": _enlarge(model, held_out),
        "held out": held_out,
    }
    picture = save(draw(ways), output, "image_to_image")
    odd = model(small, (233, 377))
    console.print(f"the same network at another size: {small.shape[1:3]} to {odd.shape[1:3]}")
    console.print(f"training {minutes:.1f} minutes; picture: {picture}")
    scores = {name: psnr(ways[name], held_out) for name in ("network", "bicubic", "bilinear")}
    console.print(
        f"held out, {small.shape[1:3]} to {held_out.shape[:2]}: PSNR "
        + ", ".join(f"{score:.2f} dB ({name})" for name, score in scores.items())
    )


def shrink(images: jax.Array) -> jax.Array:
    """Means of 2 by 2 pixels."""
    return nnx.avg_pool(images, (SCALE, SCALE), strides=(SCALE, SCALE))


_apply = nnx.jit(lambda model, images, size: model(images, size), static_argnames="size")


def _enlarge(model: ImageToImage, photograph: np.ndarray) -> jax.Array:
    return _apply(model, shrink(jnp.asarray(photograph[None])), size=photograph.shape[:2])[0]


def psnr(found, wanted) -> float:
    """The peak signal-to-noise ratio in dB, of values in [0, 1]."""
    error = np.mean((np.clip(np.asarray(found), 0, 1) - np.asarray(wanted)) ** 2)
    return float(-10 * np.log10(error))


def draw(ways: dict):
    """One detail each way."""
    figure, grid = plt.subplots(1, len(ways), figsize=(15, 3.4))
    for axes, (title, image) in zip(grid, ways.items(), strict=True):
        height, width = image.shape[:2]
        detail = image[height // 5 : height * 3 // 5, width // 4 : width * 2 // 3]
        axes.imshow(np.clip(detail, 0, 1))
        axes.set_title(title)
        axes.axis("off")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    typer.run(main)
