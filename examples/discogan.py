"""Light and dark skin tones of emoji related without pairs, by DiscoGAN.

python -m examples.discogan
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NamedTuple

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
from jaxnets.models import DiscoGAN
from jaxnets.training import fit

BATCH, SIDE = 16, 48


class Domains(NamedTuple):
    """Two domains for training, of different families, and pairs of families that neither has."""

    light: np.ndarray
    dark: np.ndarray
    test_light: np.ndarray
    test_dark: np.ndarray


def main(
    steps: Annotated[int, typer.Option(help="Steps of 16 images of each domain.")] = 1200,
    output: Output = Path("results"),
) -> None:
    """Trains without pairs, and says how near the held-out counterparts come to the true ones."""
    console = Console()
    domains = split(data.skin_tones(SIDE))
    console.print(
        f"{len(domains.light)} light and {len(domains.dark)} dark emoji of other families; "
        f"{len(domains.test_light)} held-out pairs"
    )
    model = DiscoGAN(3, rngs=nnx.Rngs(0))

    def batch_at(step):
        rng = np.random.default_rng(step)
        return tuple(
            part[rng.integers(len(part), size=BATCH)] for part in (domains.light, domains.dark)
        )

    begun = time.perf_counter()
    fit(
        model, lambda model, batch, key: model.loss(*batch), batch_at, steps,
        optimizer=optax.adam(5e-4, b1=0.5), key=jax.random.key(0), every=max(1, steps // 6),
        console=console, evaluate=lambda model: errors(model, domains),
    )  # fmt: skip
    minutes = (time.perf_counter() - begun) / 60
    model.eval()
    picture = save(draw(model, domains), output, "discogan")
    console.print(f"training {minutes:.1f} minutes; picture: {picture}")
    found = errors(model, domains)
    console.print(
        f"held-out pairs, mean absolute error where skin is: light to dark {found['to_dark']:.3f}, "
        f"dark to light {found['to_light']:.3f}; unchanged images {unchanged(domains):.3f}"
    )


def split(tones: data.Tones) -> Domains:
    """A fifth of the families held out; of the others half give light images, half dark ones."""
    families = sorted(set(tones.families))
    order = np.random.default_rng(0).permutation(len(families))
    place = {
        families[i]: share for i, share in zip(order, np.linspace(0, 1, len(order)), strict=True)
    }
    where = np.array([place[family] for family in tones.families])
    held_out = where > 0.8
    return Domains(
        tones.light[where <= 0.4],
        tones.dark[(where > 0.4) & ~held_out],
        tones.light[held_out],
        tones.dark[held_out],
    )


_to_dark = nnx.jit(lambda model, images: model.a_to_b(images))
_to_light = nnx.jit(lambda model, images: model.b_to_a(images))


def _error(found, wanted, skin) -> float:
    return float((np.abs(np.asarray(found) - wanted) * skin).sum() / (skin.sum() * 3))


def skin(domains: Domains) -> np.ndarray:
    """Where the two of a pair differ by more than 0.1, [pairs, side, side, 1]."""
    return (np.abs(domains.test_light - domains.test_dark).max(-1, keepdims=True) > 0.1) * 1.0


def errors(model: DiscoGAN, domains: Domains) -> dict[str, float]:
    """Of the counterparts of held-out images: no pair was seen, but each has a true one."""
    dark = _to_dark(model, jnp.asarray(domains.test_light))
    light = _to_light(model, jnp.asarray(domains.test_dark))
    return {
        "to_dark": _error(dark, domains.test_dark, skin(domains)),
        "to_light": _error(light, domains.test_light, skin(domains)),
    }


def unchanged(domains: Domains) -> float:
    """The error of doing nothing."""
    return _error(domains.test_light, domains.test_dark, skin(domains))


def draw(model: DiscoGAN, domains: Domains):
    """Held-out images, their counterparts, the true ones, and there and back."""
    chosen = np.linspace(0, len(domains.test_light) - 1, 8).astype(int)
    light, dark = (jnp.asarray(part[chosen]) for part in (domains.test_light, domains.test_dark))
    found = _to_dark(model, light)
    rows = {
        "light": light, "to dark": found, "truly dark": dark, "and back": _to_light(model, found),
        "dark to light": _to_light(model, dark),
    }  # fmt: skip
    figure, grid = plt.subplots(len(rows), 8, figsize=(10, 7))
    for row, (title, images) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(title, fontsize=9)
        for axes, image in zip(row, images, strict=True):
            axes.imshow(np.clip(image, 0, 1))
            axes.set(xticks=[], yticks=[])
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    typer.run(main)
