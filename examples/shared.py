"""What the examples share: batches by number, the option for the folder, saving a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import typer

Output = Annotated[Path, typer.Option(help="Folder for the picture.")]


def shuffled(examples: int, batch: int) -> tuple[int, Callable[[int], np.ndarray]]:
    """Batches an epoch, and a function from the step to its examples; each epoch has its order."""
    each = examples // batch

    def chosen(step: int) -> np.ndarray:
        epoch, number = divmod(step, each)
        order = np.random.default_rng(epoch).permutation(examples)
        return order[number * batch : (number + 1) * batch]

    return each, chosen


def save(figure, folder: Path, name: str) -> Path:
    """Writes the picture ``name.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
