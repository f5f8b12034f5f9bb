"""A teacher of whom the best classes are on record, and how it is checked and read."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels.checks import as_floats, as_integers, in_range, is_known
from jaxnets.kernels.linear_softmax.excluded import PADDING

_ROUNDING = 1e-3  # by which a logarithm of a probability may exceed 0


class TopKTeacher(NamedTuple):
    """What is on record of a teacher: its best classes, for :func:`linear_divergence`.

    Attributes:
      ids: [..., k], integers in [0, vocab_size), each once a token; -1 is no class.
      log_probs: [..., k], float, at most 0; anything beside an id of -1.
      rest: [...], the probability of all other classes together; 0 leaves them out, so that the
        sum of the others is all that counts. None: what is missing to 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import Head, TopKTeacher, linear_divergence
      >>> teacher = TopKTeacher(jnp.array([[3, 1]]), jnp.log(jnp.array([[0.5, 0.25]])))
      >>> student = Head(jnp.ones((1, 4)), jnp.zeros((4, 4)))
      >>> float(linear_divergence(student, teacher))  # 0.5 log 2, and 0.25 log(0.25 / 0.5)
      0.1732...
    """

    ids: Any
    log_probs: Any
    rest: Any = None


def check_teacher(
    teacher: TopKTeacher,
    batch: tuple[int, ...],
    vocab_size: int,
    kept: np.ndarray | None,
) -> TopKTeacher:
    """Its arrays; raises unless they fit and, where known and ``kept``, are in range.

    ``kept``: ``batch`` bool, or None where it is not known which tokens are.
    """
    ids = as_integers("teacher.ids", teacher.ids, "integer class ids")
    log_probs = as_floats("teacher.log_probs", teacher.log_probs)
    rest = None if teacher.rest is None else as_floats("teacher.rest", teacher.rest)
    if ids.ndim != len(batch) + 1 or ids.shape[:-1] != batch:
        raise ValueError(
            f"teacher.ids must be [..., k] for the student's tokens {batch}, got shape {ids.shape}"
        )
    if log_probs.shape != ids.shape:
        raise ValueError(
            f"teacher.log_probs must have the shape of teacher.ids, {ids.shape}, got "
            f"{log_probs.shape}"
        )
    if rest is not None and rest.shape != batch:
        raise ValueError(f"teacher.rest must have shape {batch}, got {rest.shape}")
    if kept is not None and all(map(is_known, (ids, log_probs, rest))):
        values, logs = np.asarray(ids)[kept], np.asarray(log_probs, np.float64)[kept]
        _refuse("teacher.ids", f"[-1, {vocab_size})", values, in_range(values, vocab_size, PADDING))
        _refuse("teacher.log_probs", "[-inf, 0]", logs, (logs <= _ROUNDING) | (values == PADDING))
        if rest is not None:
            masses = np.asarray(rest, np.float64)[kept]
            _refuse("teacher.rest", "[0, 1]", masses, (masses >= 0) & (masses <= 1 + _ROUNDING))
    return TopKTeacher(ids, log_probs, rest)


def _refuse(name: str, where: str, values: np.ndarray, fine: np.ndarray) -> None:
    if not fine.all():
        raise ValueError(f"{name} must lie in {where}, got {values[~fine].flat[0]}")


def probabilities(
    teacher: TopKTeacher, vocab_size: int, kept: jax.Array | None, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``ids`` and p [..., k], and the mass of the rest [...].

    That is NaN where something is out of range, and all is 0 where ``kept`` is.
    """
    ids, log_probs, rest = teacher
    present = in_range(ids, vocab_size)
    p = jnp.where(present, jnp.exp(jnp.where(present, log_probs.astype(dtype), 0)), 0)
    total = p.sum(-1)
    wrong = (~in_range(ids, vocab_size, PADDING) | (p > 1 + _ROUNDING)).any(-1)
    if rest is None:
        rest = 1 - total
        rest = jnp.where(rest > ids.shape[-1] * float(jnp.finfo(dtype).eps), rest, 0)  # of rounding
    rest = rest.astype(dtype)
    rest = jnp.where(wrong | (rest < 0) | jnp.isnan(total), jnp.nan, rest)
    if kept is None:
        return ids, p, rest
    out = kept == 0
    return ids, jnp.where(out[..., None], 0, p), jnp.where(out, 0, rest)
