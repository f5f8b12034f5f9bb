"""One update from the gradients of several mini-batches, dense and by rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import optax

from jaxnets.kernels.checks import INT32_MAX, as_floats, as_int
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.rows.distinct import check_tables, summed_rows
from jaxnets.optim.by_rows import is_rows
from jaxnets.optim.partition import names_of_leaves


class AccumulatorState(NamedTuple):
    """Mini-batches since the last update, the optimizer's own state, and what was put by.

    ``gradients`` has a dict for each parameter: of ``sum``, or of ``ids`` [every, rows] (plain
    int32) and ``values`` [every, rows, ...].
    """

    step: jax.Array
    inner: Any
    gradients: list[dict[str, jax.Array]]


def accumulate(
    optimizer: optax.GradientTransformation,
    every: SupportsIndex,
    num_rows: Callable[[tuple[str, ...]], SupportsIndex],
) -> optax.GradientTransformation:
    r"""``optimizer`` on the mean gradient of ``every`` mini-batches; in between nothing moves.

    .. math:: g = \frac{1}{k} \sum_{j=1}^{k} g_j

    As ``optax.MultiSteps``, with :class:`jaxnets.kernels.SparseRows` among the gradients: of rows
    the ids and values of all mini-batches are kept, and those of equal ids are summed at the last.
    A row that some of them did not touch has a 0 there, so the update is that of one batch of all.
    Sums are in float32 at least. Schedules count updates, not mini-batches; to clip the mean, and
    not each mini-batch, chain :func:`clip_by_global_norm` inside.

    Args:
      optimizer: of this package or of optax, for the whole tree.
      every: k, at least 1.
      num_rows: of a parameter's path, as in :func:`partition`, the most rows that a mini-batch's
        gradient of it has, and 0 if it is dense. The updates of a table have ``every * num_rows``
        rows, which in between name none.

    Raises:
      TypeError: ``every`` or rows that are no integers; by ``init``, parameters that are no floats;
        by ``update``, rows where ``num_rows`` says dense, or the reverse.
      ValueError: ``every`` below 1, or negative rows; by ``update``, more rows than ``num_rows``,
        or another tree or other shapes than ``init`` was given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table = jnp.zeros((9, 1))
      >>> optimizer = accumulate(optim.sgd(1.0), every=2, num_rows=lambda path: 2)
      >>> state = optimizer.init(table)
      >>> @jax.jit
      ... def step(table, state, gradient):
      ...     updates, state = optimizer.update(gradient, state)
      ...     return optim.apply_updates(table, updates), state
      >>> for ids in ([3, 7], [3, 8]):
      ...     table, state = step(table, state, SparseRows(ids, jnp.ones((2, 1))))
      ...     print(table[:, 0].tolist())
      [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
      [0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -0.5, -0.5]
    """
    every = as_int("every", every, 1)

    def empty(path, parameter):
        parameter = as_floats("parameters", parameter)
        dtype, count = accumulator_dtype(parameter), as_int("num_rows", num_rows(path), 0)
        if not count:
            return {"sum": jnp.zeros_like(parameter, dtype)}
        ids = jnp.full((every, count), INT32_MAX, jnp.int32)  # no row
        check_tables(parameter, ids)
        return {"ids": ids, "values": jnp.zeros((*ids.shape, *parameter.shape[1:]), dtype)}

    def init(parameters):
        leaves, paths = jax.tree.leaves(parameters), names_of_leaves(parameters)
        kept = [empty(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
        return AccumulatorState(jnp.zeros((), jnp.int32), optimizer.init(parameters), kept)

    def update(gradients, state, params=None):
        leaves, structure = jax.tree.flatten(gradients, is_leaf=is_rows)
        if len(leaves) != len(state.gradients):
            raise ValueError(
                f"gradients must be those of the {len(state.gradients)} parameters that the state "
                f"was made for, got {len(leaves)} leaves"
            )
        each = zip(names_of_leaves(gradients), leaves, state.gradients, strict=True)
        kept = [_with(path, leaf, before, state.step) for path, leaf, before in each]

        def last(kept, inner):
            means = [_mean(leaf, found, every) for leaf, found in zip(leaves, kept, strict=True)]
            return optimizer.update(jax.tree.unflatten(structure, means), inner, params)

        def between(kept, inner):
            updates, _ = jax.eval_shape(last, kept, inner)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), updates), inner

        is_last = state.step == every - 1
        updates, inner = jax.lax.cond(is_last, last, between, kept, state.inner)
        return updates, AccumulatorState((state.step + 1) % every, inner, kept)

    return optax.GradientTransformation(init, update)


def _with(path: tuple[str, ...], gradient: Any, kept: dict, step: jax.Array) -> dict:
    """``kept`` with the gradient of mini-batch ``step``, of which the first starts anew."""
    if is_rows(gradient) != ("ids" in kept):
        kinds = {True: "SparseRows", False: "dense"}
        raise TypeError(
            f"the gradient of {path} must be {kinds['ids' in kept]}, as num_rows says, got "
            f"{kinds[is_rows(gradient)]}"
        )
    if not is_rows(gradient):
        total = kept["sum"]
        if jnp.shape(gradient) != total.shape:
            raise ValueError(
                f"the gradient of {path} must have the shape of the parameter, {total.shape}, got "
                f"{jnp.shape(gradient)}"
            )
        return {"sum": jnp.where(step == 0, 0, total) + gradient.astype(total.dtype)}
    ids, values = gradient
    _, capacity, *features = kept["values"].shape
    missing = capacity - ids.size
    if missing < 0 or values.shape[1:] != tuple(features):
        raise ValueError(
            f"the gradient of {path} must have values of at most {(capacity, *features)}, as "
            f"num_rows says, got {values.shape}"
        )
    ids = jnp.pad(ids, (0, missing), constant_values=INT32_MAX)
    values = jnp.pad(values, ((0, missing), *((0, 0) for _ in features)))
    return {
        "ids": kept["ids"].at[step].set(ids),
        "values": kept["values"].at[step].set(values.astype(kept["values"].dtype)),
    }


def _mean(gradient: Any, kept: dict, every: int) -> Any:
    """Of all mini-batches; if dense in its own dtype, which is that of optax's states."""
    if not is_rows(gradient):
        return (kept["sum"] / every).astype(gradient.dtype)
    ids, values = kept["ids"], kept["values"]
    total = summed_rows([(ids, values)], INT32_MAX - ids.size, values.dtype)
    return total._replace(values=total.values / every)
