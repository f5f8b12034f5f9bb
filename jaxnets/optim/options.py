"""A number that an optimizer is given: an error where it is known to be wrong, else NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxnets.kernels.checks import as_number, is_known


def as_option(
    name: str,
    number: Any,
    is_right: Callable = lambda x: (x >= 0) & (x < jnp.inf),
    words: str = "a number of at least 0",
) -> Any:
    """A known number as a float, of whatever dtype it meets; a traced one, NaN if not right."""
    if callable(number):
        raise TypeError(f"{name} must be a number, not a schedule, got {number!r}")
    if jnp.shape(number) != ():
        raise ValueError(f"{name} must be {words}, got shape {jnp.shape(number)}")
    if not is_known(number):
        return jnp.where(is_right(number), number, jnp.asarray(jnp.nan, jnp.result_type(number)))
    known = as_number(name, number)
    if not is_right(known):
        raise ValueError(f"{name} must be {words}, got {number}")
    return known
