"""A jitted step that only ever compiles for the shapes of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.sequences.padding import Batch
from jaxnets.sequences.plan import Shape, as_shape


class BucketedFunction:
    """See :func:`bucketed_jit`; ``compiles`` counts the programs compiled so far."""

    def __init__(self, function: Callable, shapes: Sequence[Any], **jit_options: Any):
        self.shapes = tuple(sorted(map(as_shape, shapes), key=lambda shape: shape.steps))
        if len({len(shape.times) for shape in self.shapes}) > 1:
            raise ValueError(f"shapes must be of one number of sides, got {shapes}")
        self.compiles = 0

        def counted(*args):
            self.compiles += 1
            return function(*args)

        self._jitted = jax.jit(counted, **jit_options)

    def __call__(self, *args: Any) -> Any:
        """Pads the last argument, a ``Batch``, to its bucket, and calls the function."""
        *rest, batch = args
        if not isinstance(batch, Batch):
            raise TypeError(f"the last argument must be a Batch, got {type(batch).__name__}")
        shape = self.bucket(batch)
        _check_rows(batch)
        return self._jitted(*rest, _pad(batch, shape))

    def bucket(self, batch: Batch) -> Shape:
        """The cheapest shape that holds ``batch``."""
        if self.shapes and len(batch.sequences) != len(self.shapes[0].times):
            raise ValueError(
                f"batch must have {len(self.shapes[0].times)} sides as the shapes have, got "
                f"{len(batch.sequences)}"
            )
        rows = batch.sequences[0].shape[0]
        times = tuple(sequence.shape[1] for sequence in batch.sequences)
        for shape in self.shapes:
            if rows <= shape.batch and all(
                time <= limit for time, limit in zip(times, shape.times, strict=True)
            ):
                return shape
        raise ValueError(
            f"batch must fit one of the shapes {[tuple(shape) for shape in self.shapes]}, got "
            f"{rows} rows of {times} steps: give the plan a longer bucket, or drop or split the "
            "sequence; it is not compiled anew"
        )


def bucketed_jit(function: Callable, shapes: Sequence[Any], **jit_options: Any) -> BucketedFunction:
    """``jax.jit`` for a step over padded batches that compiles once a bucket and never more.

    Args:
      function: called as ``function(*args, batch)`` with a :class:`Batch` of one of the shapes.
        Rows of padding have length 0 and example -1, steps of padding are zeros; the function masks
        by lengths.
      shapes: of a plan, ``plan.shapes``, or pairs of rows and times.
      jit_options: of ``jax.jit``, ``donate_argnums`` for example.

    Returns:
      A function of the same arguments. Its batch may be of any shape that fits a bucket, so a last
      short batch compiles nothing. ``compiles`` counts the programs.

    Raises:
      TypeError: the last argument is no batch.
      ValueError: on a call with a batch that fits no bucket, or whose arrays differ in their rows.

    Example:
      >>> import jax.numpy as jnp
      >>> step = bucketed_jit(lambda batch: batch.sequences[0].sum(), [Shape(2, (4,))])
      >>> for time in (2, 3, 4):
      ...     total = step(Batch((jnp.ones((1, time)),), (jnp.array([time]),)))
      >>> float(total), step.compiles
      (4.0, 1)
      >>> step(Batch((jnp.ones((1, 5)),), (jnp.array([5]),)))
      Traceback (most recent call last):
        ...
      ValueError: batch must fit one of the shapes [(2, (4,))], got 1 rows of (5,) steps: give the \
plan a longer bucket, or drop or split the sequence; it is not compiled anew
    """
    return BucketedFunction(function, shapes, **jit_options)


def _check_rows(batch: Batch) -> None:
    """Raise ``ValueError`` where the arrays of a batch differ in their rows."""
    rows = batch.sequences[0].shape[0]
    for path, array in jax.tree_util.tree_leaves_with_path(batch):
        own = np.shape(array)
        if own and own[0] != rows:
            raise ValueError(
                f"batch must have one number of rows, {rows} as its first sequence, got {own} for "
                f"batch{jax.tree_util.keystr(path)}"
            )


def _pad(batch: Batch, shape: Shape) -> Batch:
    def grow(array, *sizes, filling=0):
        missing = [size - old for size, old in zip(sizes, np.shape(array), strict=False)]
        if not any(missing):
            return array
        widths = [(0, n) for n in missing] + [(0, 0)] * (array.ndim - len(missing))
        # NumPy's own stay there: each shape would be a small program of JAX's.
        pad = jnp.pad if isinstance(array, jax.Array) else np.pad
        return pad(array, widths, constant_values=filling)

    return Batch(
        tuple(grow(a, shape.batch, t) for a, t in zip(batch.sequences, shape.times, strict=True)),
        tuple(grow(array, shape.batch) for array in batch.lengths),
        jax.tree.map(lambda array: grow(array, shape.batch), batch.rows),
        jax.tree.map(lambda array: grow(array, shape.batch, filling=-1), batch.examples),
    )
