"""optax-style transformations of :class:`jaxnets.kernels.Rows` gradients.

Each is an ``optax.GradientTransformation``. Its gradients are a pytree with ``Rows`` where the
parameters have a table [vocab, ...]; its updates are ``Rows`` too, for :func:`apply_updates`. Keep
tables apart from the dense parameters, and give those to optax.

Rows without a gradient are left as they are, with all their state. For SGD and Adagrad that is what
the dense optimiser does with a gradient of 0, so the two agree exactly. For momentum and Adam it is
not: the dense optimiser goes on moving a row by its old momentum and lets the moments decay. The
lazy ones agree with it where every row is touched at every step.

Donate tables and state to the jitted step, or each step copies them:

>>> import jax, jax.numpy as jnp
>>> from jaxnets import optim
>>> from jaxnets.kernels import Rows, gather_rows
>>> optimizer = optim.adagrad(0.1)
>>> def step(table, state, ids):
...     row_ids, rows, local_ids = gather_rows(table, ids)
...     gradient = jax.grad(lambda rows: (rows[local_ids] ** 2).sum())(rows)
...     updates, state = optimizer.update(Rows(row_ids, gradient), state)
...     return optim.apply_updates(table, updates), state
>>> table = jnp.ones((1000, 4))
>>> step = jax.jit(step, donate_argnums=(0, 1))
>>> table, state = step(table, optimizer.init(table), jnp.array([3, 3, 8]))
>>> [bool((table[i] < 1).all()) for i in (3, 8, 9)]
[True, True, False]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnets.kernels.softmax.sparse import Rows, add_rows, set_rows


class RowState(NamedTuple):
    """The number of steps, and for each table a dict of arrays with the table's first axis."""

    step: jax.Array
    tables: Any


def sgd(learning_rate: float) -> optax.GradientTransformation:
    """``update = -learning_rate g``. Equal to ``optax.sgd``."""

    def rule(gradient, state, count):
        return -learning_rate * gradient, state

    return _by_rows(lambda table: {}, rule)


def momentum(learning_rate: float, decay: float = 0.9) -> optax.GradientTransformation:
    """``m = decay m + g; update = -learning_rate m``, on touched rows only.

    A row's velocity neither decays nor moves it while the row is not touched; ``optax.sgd`` with
    momentum would do both.
    """

    def rule(gradient, state, count):
        velocity = decay * state["velocity"] + gradient
        return -learning_rate * velocity, {"velocity": velocity}

    return _by_rows(lambda table: {"velocity": jnp.zeros_like(table)}, rule)


def adagrad(
    learning_rate: float, initial_accumulator: float = 0.1, eps: float = 1e-7
) -> optax.GradientTransformation:
    """``a = a + g^2; update = -learning_rate g / sqrt(a + eps)`` (Duchi et al. 2011).

    Equal to ``optax.adagrad``: a gradient of 0 changes nothing in either.
    """

    def rule(gradient, state, count):
        total = state["sum"] + gradient**2
        return -learning_rate * gradient * jax.lax.rsqrt(total + eps), {"sum": total}

    return _by_rows(lambda table: {"sum": jnp.full_like(table, initial_accumulator)}, rule)


def rowwise_adagrad(
    learning_rate: float, initial_accumulator: float = 0.1, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adagrad with one accumulator a row, of the mean of g^2 over the row: 1/features the state.

    As in DLRM (Naumov et al. 2019). Equal to :func:`adagrad` on a table of one feature.
    """

    def rule(gradient, state, count):
        columns = tuple(range(1, gradient.ndim))
        total = state["sum"] + (gradient**2).mean(columns)
        scale = jax.lax.rsqrt(total + eps).reshape(-1, *(1 for _ in columns))
        return -learning_rate * gradient * scale, {"sum": total}

    def zero(table):
        return {"sum": jnp.full(table.shape[:1], initial_accumulator, table.dtype)}

    return _by_rows(zero, rule)


def lazy_adam(
    learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) whose moments and parameters change on touched rows only.

    The bias correction uses the number of all steps, as Adam's does. It differs from Adam in that a
    row that is not touched keeps its moments and stays; under Adam the moments decay and the row
    goes on moving. With every row touched at every step it equals ``optax.adam``.
    """

    def rule(gradient, state, count):
        first = b1 * state["first"] + (1 - b1) * gradient
        second = b2 * state["second"] + (1 - b2) * gradient**2
        steps = count.astype(gradient.dtype)
        scale = jnp.sqrt(second / (1 - b2**steps)) + eps
        update = -learning_rate * (first / (1 - b1**steps)) / scale
        return update, {"first": first, "second": second}

    def zero(table):
        return {"first": jnp.zeros_like(table), "second": jnp.zeros_like(table)}

    return _by_rows(zero, rule)


def apply_updates(tables: Any, updates: Any) -> Any:
    """``tables`` with the ``Rows`` of ``updates`` added, in place where the tables are donated.

    Updates that are arrays are added as ``optax.apply_updates`` does.
    """

    def add(update, table):
        if is_rows(update):
            return add_rows(table, update)
        return (table + update).astype(table.dtype)

    return jax.tree.map(add, updates, tables, is_leaf=is_rows)


def is_rows(leaf: Any) -> bool:
    """Whether a leaf of gradients or updates is ``Rows``, to be asked before it is taken apart."""
    return isinstance(leaf, Rows)


def _by_rows(zero: Callable, rule: Callable) -> optax.GradientTransformation:
    """Gathers the state's rows, applies ``rule(gradient, state, count)``, and puts them back."""

    def init(tables):
        return RowState(
            jnp.zeros((), jnp.int32), [zero(table) for table in jax.tree.leaves(tables)]
        )

    def update(gradients, state, params=None):
        del params
        count = state.step + 1
        leaves, tree = jax.tree.flatten(gradients, is_leaf=is_rows)
        updates, tables = [], []
        for rows, arrays in zip(leaves, state.tables, strict=True):
            if not is_rows(rows):
                raise TypeError(f"gradients must be Rows for each table, got {type(rows).__name__}")
            touched = {name: a.at[rows.ids].get(mode="clip") for name, a in arrays.items()}
            values, touched = rule(rows.values, touched, count)
            updates.append(Rows(rows.ids, values))
            tables.append(
                {name: set_rows(arrays[name], Rows(rows.ids, new)) for name, new in touched.items()}
            )
        return jax.tree.unflatten(tree, updates), RowState(count, tables)

    return optax.GradientTransformation(init, update)
