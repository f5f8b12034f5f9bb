"""Which steps of a row count: lengths, ids of segments or a mask, brought to one form.

Whatever implementation runs the steps knows lengths only. With padding elsewhere than at its end a
row's steps that count are gathered to its front, in their order, and the outputs are put back where
they belong. A step that does not count leaves no trace: its input becomes zero.

A row of which only its values tell that they mean nothing (a length beyond the time, a mask of
0.5) is run in full, and from a carry of NaN: its outputs, its carry and the gradients are NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.checks import in_range


class Given(NamedTuple):
    """What the caller gave, at most one of them; ``None`` where there is none."""

    lengths: jax.Array | None = None  # [batch] int32
    segment_ids: jax.Array | None = None  # [batch, time] int32; 0: padding
    mask: jax.Array | None = None  # [batch, time]; 0 or False: padding


class Padding(NamedTuple):
    """The same for one batch; ``None`` where there is none."""

    lengths: jax.Array | None  # [batch] int32: how many steps count
    resets: jax.Array | None = None  # [batch, time] bool: the step at this place starts from zeros
    wrong: jax.Array | None = None  # [batch] bool: rows of values that mean nothing
    valid: jax.Array | None = None  # [batch, time] bool: the step counts
    order: jax.Array | None = None  # [batch, time]: the step that stands at each place
    place: jax.Array | None = None  # [batch, time]: the place of each step


def padding_of(given: Given, time: int, *, reverse: bool) -> Padding:
    """How ``given`` is run."""
    if given.lengths is not None:
        wrong = ~in_range(given.lengths, time + 1)
        lengths = jnp.where(wrong, time, given.lengths)
        given = Given(lengths)
        valid = steps_that_count(given, (lengths.shape[0], time), 1)
        return Padding(lengths, None, wrong, valid)
    if given.segment_ids is not None:
        padding = _gathered(given.segment_ids != 0)
        resets = _resets(given.segment_ids, padding.order, padding.lengths, reverse)
        return padding._replace(resets=resets)
    if given.mask is not None:
        if given.mask.dtype == bool:
            return _gathered(given.mask)
        wrong = ((given.mask != 0) & (given.mask != 1)).any(1)
        return _gathered((given.mask != 0) | wrong[:, None])._replace(wrong=wrong)
    return Padding(None)


def steps_that_count(given: Given, shape: tuple[int, ...], time_axis: int) -> jax.Array | None:
    """Whether each counts, of ``shape``, or None where all do; axes as the caller gave them."""
    if given.lengths is not None:
        steps = lax.broadcasted_iota(jnp.int32, shape, time_axis)
        return steps < jnp.expand_dims(given.lengths, time_axis)
    if given.segment_ids is not None:
        return given.segment_ids != 0
    return None if given.mask is None else given.mask.astype(bool)


def _gathered(valid: jax.Array) -> Padding:
    """The steps that count in front, those that do not behind them, each in their order."""
    batch, time = valid.shape
    lengths = valid.sum(1, dtype=jnp.int32)
    counted = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
    behind = lengths[:, None] + jnp.cumsum(~valid, axis=1, dtype=jnp.int32)
    place = jnp.where(valid, counted, behind) - 1
    steps = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32)[None], (batch, time))
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    order = jnp.zeros_like(place).at[rows, place].set(steps, unique_indices=True)
    return Padding(lengths, valid=valid, order=order, place=place)


def _resets(segment_ids: jax.Array, order: Any, lengths: Any, reverse: bool) -> jax.Array:
    """Where the id is not that of the step before it, in the order of running."""
    ids = jnp.take_along_axis(segment_ids, order, axis=1, mode="promise_in_bounds")
    inside = jnp.arange(1, ids.shape[1], dtype=jnp.int32)[None] < lengths[:, None]
    changes = (ids[:, 1:] != ids[:, :-1]) & inside
    never = jnp.zeros_like(ids[:, :1], bool)
    return jnp.concatenate([changes, never] if reverse else [never, changes], axis=1)


def poisoned(state: Any, padding: Padding) -> Any:
    """The state to begin with: NaN in rows of values that mean nothing."""
    if padding.wrong is None:
        return state
    wrong = padding.wrong[:, None]
    return jax.tree.map(lambda s: jnp.where(wrong, jnp.nan, s), state)


def to_front(inputs: jax.Array, padding: Padding, *, copied: bool) -> jax.Array:
    """``inputs [batch, time, features]`` as they are run.

    ``copied``: they are no longer the caller's own array. What is kept of such for the gradient
    must hold no NaN of the padding, which ``jax_debug_nans`` would find.
    """
    if padding.lengths is None or padding.valid is None:
        return inputs
    if padding.order is None:
        return jnp.where(padding.valid[:, :, None], inputs, 0) if copied else inputs
    inside = jnp.arange(inputs.shape[1], dtype=jnp.int32)[None] < padding.lengths[:, None]
    return jnp.where(inside[:, :, None], _take(inputs, padding.order), 0)


def put_back(
    outputs: jax.Array, h: jax.Array, padding: Padding, *, repeat: bool, reverse: bool
) -> jax.Array:
    """Outputs as they were run, each at its own step; zeros, or h repeated, in the padding.

    ``h [batch, output]`` is that before the first step.
    """
    if padding.lengths is None or padding.valid is None:
        return outputs
    if repeat:
        counted = jnp.cumsum(padding.valid, axis=1, dtype=jnp.int32)
        last = counted - padding.valid.astype(jnp.int32) if reverse else counted - 1
        none = (last == padding.lengths[:, None]) if reverse else (last < 0)
        repeated = _take(outputs, jnp.clip(last, 0, outputs.shape[1] - 1))
        return jnp.where(none[:, :, None], h.astype(outputs.dtype)[:, None], repeated)
    return outputs if padding.place is None else _take(outputs, padding.place)


def _take(array: jax.Array, steps: jax.Array) -> jax.Array:
    return jnp.take_along_axis(array, steps[:, :, None], axis=1, mode="promise_in_bounds")
