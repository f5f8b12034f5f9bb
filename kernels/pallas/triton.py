"""JAX's Triton backend of Pallas, deprecated since jax 0.12: all there is of it here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl

try:
    from jax.experimental.pallas import triton
except ImportError:  # a later JAX, which has removed it
    triton: Any = None  # type: ignore[no-redef]


def obstacle() -> str | None:
    """Why nothing can be written for Triton with this JAX."""
    if triton is None:
        return f"jax {jax.__version__} has no Triton backend of Pallas any more"
    return None


def pallas_call(*args: Any, **kwargs: Any) -> Callable[..., Any]:
    """``pl.pallas_call`` of a kernel for Triton, whose deprecation is this package's to read.

    JAX warns where the program is lowered, which is after this returns: so the filter stays.
    """
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
    return pl.pallas_call(*args, **kwargs)
