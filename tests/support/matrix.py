"""What works with what: every public function of the kernels, in every way that it is used.

A cell of the table is an experiment: the function is run, transformed and compared with itself, or
lowered for a platform. ``test_matrix.py`` runs each and holds it against ``docs/support.md``;
``python -m tests.support.matrix`` writes that page from the outcomes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)

from tests.support.experiments import Programs, compiled_for, dtype, platform, transformation
from tests.support.subjects import PLATFORMS, SUBJECTS

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
DTYPES = ("float32", "bfloat16", "float16", "float64")
TRANSFORMATIONS = ("jit", "grad", "jvp", "vmap", "remat", "scan", "shard_map")
COLUMNS = {
    **dict.fromkeys(DTYPES, dtype),
    **dict.fromkeys(TRANSFORMATIONS, transformation),
    **dict.fromkeys(PLATFORMS, platform),
}


def outcomes(programs: Programs, columns: Iterable[str] = COLUMNS) -> dict[str, str]:
    """A row of the table, or some cells of it."""
    return {name: COLUMNS[name](programs, name) for name in columns}


def rows_of(page: str) -> dict[str, dict[str, str]]:
    """The cells of the page, by function and column."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    names = [name.strip() for name in lines[0].strip("|").split("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in rows}


_INTRODUCTION = """# What works with what

Written by `python -m tests.support.matrix` from the outcomes of its experiments, which the tests
repeat, cell by cell. **yes**: the result was compared, value or gradient, with the function as it
is. **no**: refused with an error. **-**: does not apply (not differentiable, or another platform's
kernel).

- *dtype*: float32 results of the same numbers, within the dtype's rounding.
- *grad* and *remat*, the gradient of the rematerialized function, against finite differences; *jvp*
  against grad; *vmap*, *scan* and *shard_map* against the function called by itself, vmap in scan
  in shard_map where all three go. shard_map is data parallelism by hand, around a function; a
  function with a `sharding` has one inside, and does not go into another.
- *platform*: on CPU everything runs. For gpu (CUDA) and tpu, values and gradients are **lowered**
  here, not run: XLA functions by `jax.export`, Pallas kernels to Triton and Mosaic, whose numbers
  are those of interpret mode. `lstm` by cuDNN is not listed: it cannot be traced without a GPU.
- A forward mode (jvp) is refused where the reverse mode is written by hand; `"reference"`
  implementations have it.

"""


def write() -> None:
    """Runs every experiment and writes the page."""
    lines = ["| function | " + " | ".join(COLUMNS) + " |", "| --- |" + " :---: |" * len(COLUMNS)]
    for subject in SUBJECTS.values():
        with compiled_for(subject):
            cells = outcomes(Programs(subject)).values()
        lines.append(f"| {subject.name} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr)
    PAGE.write_text(_INTRODUCTION + "\n".join(lines) + "\n")


if __name__ == "__main__":
    write()
