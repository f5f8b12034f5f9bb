"""Dots counted by S-DCNet and by a plain regressor, on images denser than those of training too.

python -m examples.sdcnet
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

from examples.shared import Output, save
from jaxnets.models import CountRegressor, SDCNet
from jaxnets.training import fit

BATCH, PATCH, IMAGE = 16, 64, 128
MOST = 20  # dots in 64 x 64 pixels, in training


def main(
    steps: Annotated[int, typer.Option(help="Steps of 16 patches, for each model.")] = 1600,
    output: Output = Path("results"),
) -> None:
    """Trains both on the same images, and says their errors as dense as in training and denser."""
    console = Console()
    console.print(f"generated dots: up to {MOST} in {PATCH} x {PATCH} pixels in training")
    tests = {
        f"up to {most} in {PATCH} x {PATCH}": test_images(most)
        for most in (MOST, 2 * MOST, 4 * MOST)
    }
    sdcnet = SDCNet(rngs=nnx.Rngs(0))
    models: dict[str, SDCNet | CountRegressor] = {
        "S-DCNet": sdcnet,
        "regressor": CountRegressor(rngs=nnx.Rngs(0)),
    }
    begun = time.perf_counter()
    for name, model in models.items():
        console.print(name)
        fit(
            model, lambda model, batch, key: model.loss(*batch), training_batch, steps,
            optimizer=optax.adam(optax.cosine_onecycle_schedule(steps, 1e-3)),
            key=jax.random.key(0), every=max(1, steps // 4), clip_norm=5.0, console=console,
            evaluate=lambda model: {
                f"mae_{number}": mae(model, *test) for number, test in enumerate(tests.values())
            },
        )  # fmt: skip
        model.eval()
    minutes = (time.perf_counter() - begun) / 60
    picture = save(draw(sdcnet, models, tests), output, "sdcnet")
    console.print(f"training {minutes:.1f} minutes; picture: {picture}")
    for title, test in tests.items():
        errors = ", ".join(f"{mae(model, *test):.2f} ({name})" for name, model in models.items())
        console.print(
            f"{title} pixels, {test[1].sum((1, 2)).mean():.0f} dots an image: mean absolute error "
            + errors
        )


def dots(rng: np.random.Generator, side: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """An image [side, side, 1] of round dots of unequal size and light, and their centres.

    Each 64 x 64 part has its own number of dots, up to ``most``, crowded or spread over it.
    """
    centres = np.zeros((side, side), np.float32)
    image = np.full((side, side), 0.2, np.float32)
    rows, columns = np.mgrid[:side, :side]
    for top in range(0, side, PATCH):
        for left in range(0, side, PATCH):
            middle, spread = rng.uniform(0, PATCH, 2), rng.uniform(6, 60)
            for _ in range(rng.integers(most + 1)):
                place = (middle + rng.normal(scale=spread, size=2)).astype(int) % PATCH
                row, column = top + place[0], left + place[1]
                centres[row, column] += 1
                radius, light = rng.uniform(1.0, 2.2), rng.uniform(0.4, 0.8)
                near = np.s_[max(0, row - 8) : row + 9, max(0, column - 8) : column + 9]
                away = (rows[near] - row) ** 2 + (columns[near] - column) ** 2
                image[near] = np.maximum(image[near], light * np.exp(-away / radius**2))
    image += rng.normal(scale=0.03, size=image.shape)
    return image[..., None].astype(np.float32), centres


def training_batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """New patches at each step."""
    rng = np.random.default_rng((1, step))
    images, centres = zip(*(dots(rng, PATCH, MOST) for _ in range(BATCH)), strict=True)
    return np.stack(images), np.stack(centres)


def test_images(most: int) -> tuple[np.ndarray, np.ndarray]:
    """64 images of four times the patch."""
    rng = np.random.default_rng((2, most))
    images, centres = zip(*(dots(rng, IMAGE, most) for _ in range(64)), strict=True)
    return np.stack(images), np.stack(centres)


_total = nnx.jit(lambda model, images: model.total(images))


def mae(model, images: np.ndarray, centres: np.ndarray) -> float:
    """The mean absolute error of an image's count."""
    return float(
        np.abs(np.asarray(_total(model, jnp.asarray(images))) - centres.sum((1, 2))).mean()
    )


def draw(model: SDCNet, models: dict, tests: dict):
    """One dense image with its merged counts, where it was divided, and true against found."""
    images, centres = list(tests.values())[-1]
    levels = nnx.jit(lambda model, images: model(images))(model, jnp.asarray(images[:1]))
    figure, grid = plt.subplots(1, 4, figsize=(15, 4))
    grid[0].imshow(images[0, ..., 0], cmap="gray")
    grid[0].set_title(f"{centres[0].sum():.0f} dots")
    grid[1].imshow(levels.merged[-1][0], cmap="viridis")
    grid[1].set_title(f"merged counts: {float(levels.merged[-1][0].sum()):.1f}")
    grid[2].imshow(levels.decisions[-1][0], cmap="magma", vmin=0, vmax=1)
    grid[2].set_title("divided for the last time")
    for name, each in models.items():
        for test_images, test_centres in tests.values():
            true = test_centres.sum((1, 2))
            found = _total(each, jnp.asarray(test_images))
            color = {"S-DCNet": "C0", "regressor": "C1"}[name]
            grid[3].scatter(true, found, s=6, color=color)
        grid[3].scatter([], [], color=color, label=name)
    ends = [0, float(centres.sum((1, 2)).max())]
    grid[3].plot(ends, ends, color="gray")
    grid[3].set(xlabel="true", ylabel="found")
    grid[3].legend()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    typer.run(main)
