"""optax-style transformations of :class:`jaxnets.kernels.SparseRows` gradients.

Each is an ``optax.GradientTransformation``. Its gradients are a pytree with ``SparseRows`` where
the parameters have a table [vocab, ...]; its updates are ``SparseRows`` too, for
:func:`apply_updates`. Keep tables apart from the dense parameters, and give those to optax.

Rows without a gradient are left as they are, with all their state. For SGD and Adagrad that is what
the dense optimizer does with a gradient of 0, so the two agree exactly. For momentum and Adam it is
not: the dense optimizer goes on moving a row by its old momentum and lets the moments decay. The
lazy ones agree with it where every row is touched at every step.

States and arithmetic are in float32 at least, whatever the table's dtype: in bfloat16 Adam's
1 - 0.999 is 0. A learning rate is a number or, as in optax, a schedule of the steps taken before;
a number out of its range is an error, and NaN where it is traced.

Donate tables and state to the jitted step, or each step copies them:

>>> import jax, jax.numpy as jnp
>>> from jaxnets import optim
>>> from jaxnets.kernels import SparseRows, gather_rows
>>> optimizer = optim.adagrad(0.1)
>>> def step(table, state, ids):
...     row_ids, rows, local_ids = gather_rows(table, ids)
...     gradient = jax.grad(lambda rows: (rows[local_ids] ** 2).sum())(rows)
...     updates, state = optimizer.update(SparseRows(row_ids, gradient), state)
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

from jaxnets.kernels.checks import as_floats, as_option, is_known
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.rows.dense import set_rows
from jaxnets.kernels.rows.rows import SparseRows


class Touched(NamedTuple):
    """What a step's rule is given of the rows that the step touches.

    Attributes:
      gradient: [rows, ...].
      state: of the optimizer, a dict of arrays [rows, ...] or [rows]; 0 where an id fills up.
      rate: the learning rate of this step.
      steps: how many there were, this one included, int32.
      parameters: [rows, ...], 0 where an id fills up; None where the rule does not ask for them.
    """

    gradient: jax.Array
    state: dict[str, jax.Array]
    rate: jax.Array
    steps: jax.Array
    parameters: Any


class RowState(NamedTuple):
    """The number of steps, and for each table a dict of arrays with the table's first axis."""

    step: jax.Array
    tables: Any


def is_rows(leaf: Any) -> bool:
    """Whether a leaf is ``SparseRows``, to be asked before it is taken apart."""
    return isinstance(leaf, SparseRows)


def by_rows(
    learning_rate: optax.ScalarOrSchedule,
    start: Callable[[jax.Array, jnp.dtype], dict[str, jax.Array]],
    rule: Callable[[Touched], tuple[jax.Array, dict[str, jax.Array]]],
    reads_parameters: bool = False,
) -> optax.GradientTransformation:
    """Gathers the state's rows, applies ``rule`` to get updates and their state, and puts it back.

    ``start(table, dtype)`` makes a table's state, placed as the table is.
    """
    if not callable(learning_rate):
        learning_rate = as_option("learning_rate", learning_rate)

    def init(tables):
        leaves = [as_floats("tables", table) for table in jax.tree.leaves(tables)]
        states = [start(table, accumulator_dtype(table)) for table in leaves]
        return RowState(jnp.zeros((), jnp.int32), states)

    def update(gradients, state, params=None):
        count = optax.safe_increment(state.step)
        rate = learning_rate
        if callable(learning_rate):
            rate = as_option("learning_rate", learning_rate(state.step))
        leaves, tree = jax.tree.flatten(gradients, is_leaf=is_rows)
        if len(leaves) != len(state.tables):
            raise ValueError(
                f"gradients must be SparseRows for each of the {len(state.tables)} tables that the "
                f"state was made for, got {len(leaves)} leaves"
            )
        parameters = _parameters(params, len(leaves)) if reads_parameters else [None] * len(leaves)
        updates, tables = [], []
        for rows, arrays, table in zip(leaves, state.tables, parameters, strict=True):
            if not is_rows(rows):
                raise TypeError(
                    f"gradients must be SparseRows for each table, got {type(rows).__name__}"
                )
            _check_values(rows.values, [*arrays.values(), *([] if table is None else [table])])
            dtype = accumulator_dtype(rows.values, *arrays.values())
            touched = Touched(
                gradient=rows.values.astype(dtype),
                state={name: read_touched(array, rows) for name, array in arrays.items()},
                rate=jnp.asarray(rate).astype(dtype),
                steps=count,
                parameters=None if table is None else read_touched(table, rows).astype(dtype),
            )
            values, states = rule(touched)
            updates.append(rows._replace(values=values))
            tables.append({
                name: set_rows(arrays[name], rows._replace(values=new))
                for name, new in states.items()
            })  # fmt: skip
        return jax.tree.unflatten(tree, updates), RowState(count, tables)

    return optax.GradientTransformation(init, update)


def check_by_rows_alone(optimizer: optax.GradientTransformation, tables: Any, update: str) -> None:
    """Raises unless ``optimizer`` is one of :func:`by_rows`, as the function ``update`` needs."""
    state = jax.eval_shape(optimizer.init, tables)
    if not isinstance(state, RowState):
        raise TypeError(
            "optimizer must be one by rows alone, as optim.adagrad, got one whose state is "
            f"{type(state).__name__}; clip with clip_by_norm before {update}"
        )


def check_all_rows(gradients: list) -> None:
    """Raises unless each of ``gradients`` is ``SparseRows``."""
    for leaf in gradients:
        if not is_rows(leaf):
            raise TypeError(f"gradients must be SparseRows for each table, got {jnp.shape(leaf)}")


def read_touched(table: jax.Array, rows: SparseRows) -> jax.Array:
    """The rows of ``table`` that ``rows`` name, and 0 where an id fills up."""
    return jnp.asarray(table).at[rows.ids].get(mode="fill", fill_value=0)


def check_given(parameters: Any) -> Any:
    """``parameters``; raises unless ``update`` was given them."""
    if parameters is None:
        raise ValueError(
            "parameters must be given, as optimizer.update(gradients, state, parameters): this "
            "optimizer reads the rows that it moves; got None"
        )
    return parameters


def decayed(at: Touched, update: jax.Array, weight_decay: Any) -> jax.Array:
    """``update`` before the learning rate, with decoupled decay of the rows, if there is any."""
    return update if at.parameters is None else update + weight_decay * at.parameters


def decays(weight_decay: Any) -> bool:
    """Whether parameters are needed: not with a decay that is known to be 0."""
    return not (is_known(weight_decay) and weight_decay == 0)


def _parameters(parameters: Any, count: int) -> list[jax.Array]:
    leaves = jax.tree.leaves(check_given(parameters))
    if len(leaves) != count:
        raise ValueError(f"parameters must be the {count} tables of gradients, got {len(leaves)}")
    return leaves


def _check_values(values: Any, arrays: list[jax.Array]) -> None:
    as_floats("gradients", values)
    for array in arrays:
        if array.ndim > 1 and array.shape[1:] != values.shape[1:]:
            raise ValueError(
                f"gradients must have values [rows, ...] of the shape of the table's rows, "
                f"{array.shape[1:]}, got {values.shape[1:]}"
            )
