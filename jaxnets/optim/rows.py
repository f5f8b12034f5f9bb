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

from jaxnets.kernels.checks import as_floats
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.rows.dense import add_rows, set_rows
from jaxnets.kernels.rows.rows import SparseRows
from jaxnets.optim.options import as_option


class RowState(NamedTuple):
    """The number of steps, and for each table a dict of arrays with the table's first axis."""

    step: jax.Array
    tables: Any


def sgd(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """``update = -learning_rate g``. Equal to ``optax.sgd``.

    Args:
      learning_rate: a number of at least 0, or a schedule.

    Raises:
      TypeError: tables that are not floating point; by ``update``, a gradient that is not
        ``SparseRows`` of floats.
      ValueError: a number out of its range; by ``update``, gradients of another tree or other
        shapes than ``init`` was given.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = sgd(0.1)
      >>> updates, state = optimizer.update(gradient, optimizer.init(table))
      >>> apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.6...]
    """

    def rule(rate, gradient, state, count):
        return -rate * gradient, state

    return _by_rows(learning_rate, lambda table, dtype: {}, rule)


def momentum(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformation:
    """``m = decay m + g; update = -learning_rate m``, on touched rows only.

    A row's velocity neither decays nor moves it while the row is not touched; ``optax.sgd`` with
    momentum would do both.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      decay: in [0, 1].

    Raises:
      TypeError, ValueError: as :func:`sgd`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = momentum(0.1)
      >>> updates, state = optimizer.update(gradient, optimizer.init(table))
      >>> apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.6...]
    """

    decay = as_option("decay", decay, lambda x: (x >= 0) & (x <= 1), "in [0, 1]")

    def rule(rate, gradient, state, count):
        velocity = decay * state["velocity"] + gradient
        return -rate * velocity, {"velocity": velocity}

    def zero(table, dtype):
        return {"velocity": jnp.zeros_like(table, dtype)}

    return _by_rows(learning_rate, zero, rule)


def adagrad(
    learning_rate: optax.ScalarOrSchedule, initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> optax.GradientTransformation:
    """``a = a + g^2; update = -learning_rate g / sqrt(a + eps)`` (Duchi et al. 2011).

    Equal to ``optax.adagrad``: a gradient of 0 changes nothing in either.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      initial_accumulator_value: of a, at least 0.
      eps: at least 0.

    Raises:
      TypeError, ValueError: as :func:`sgd`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = adagrad(0.1, initial_accumulator_value=0.0)
      >>> updates, state = optimizer.update(gradient, optimizer.init(table))
      >>> apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.9...]
    """

    initial_accumulator_value = as_option("initial_accumulator_value", initial_accumulator_value)
    eps = as_option("eps", eps)

    def rule(rate, gradient, state, count):
        total = state["sum"] + gradient**2
        return -rate * gradient * _inverse_root(total, eps), {"sum": total}

    def start(table, dtype):
        return {"sum": jnp.full_like(table, initial_accumulator_value, dtype)}

    return _by_rows(learning_rate, start, rule)


def rowwise_adagrad(
    learning_rate: optax.ScalarOrSchedule, initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adagrad with one accumulator a row, of the mean of g^2 over the row: 1/features the state.

    As in DLRM (Naumov et al. 2019). Equal to :func:`adagrad` on a table of one feature; arguments
    and errors are the same.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = rowwise_adagrad(0.1)
      >>> updates, state = optimizer.update(gradient, optimizer.init(table))
      >>> apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.9...]
      >>> state.tables[0]["sum"].shape
      (3,)
    """

    initial_accumulator_value = as_option("initial_accumulator_value", initial_accumulator_value)
    eps = as_option("eps", eps)

    def rule(rate, gradient, state, count):
        columns = tuple(range(1, gradient.ndim))
        total = state["sum"] + (gradient**2).mean(columns)
        scale = _inverse_root(total, eps).reshape(-1, *(1 for _ in columns))
        return -rate * gradient * scale, {"sum": total}

    def start(table, dtype):
        return {"sum": jnp.full(table.shape[:1], initial_accumulator_value, dtype)}

    return _by_rows(learning_rate, start, rule)


def _inverse_root(total: jax.Array, eps: Any) -> jax.Array:
    """``1 / sqrt(total + eps)``, and 0 where nothing was ever added, as in optax."""
    return jnp.where(total > 0, jax.lax.rsqrt(total + eps), 0)


def lazy_adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) whose moments and parameters change on touched rows only.

    The bias correction uses the number of all steps, as Adam's does. It differs from Adam in that a
    row that is not touched keeps its moments and stays; under Adam the moments decay and the row
    goes on moving. With every row touched at every step it equals ``optax.adam``.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second, in [0, 1).
      eps: at least 0.

    Raises:
      TypeError, ValueError: as :func:`sgd`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = lazy_adam(0.1)
      >>> updates, state = optimizer.update(gradient, optimizer.init(table))
      >>> apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.9...]
    """

    b1 = as_option("b1", b1, lambda x: (x >= 0) & (x < 1), "in [0, 1)")
    b2 = as_option("b2", b2, lambda x: (x >= 0) & (x < 1), "in [0, 1)")
    eps = as_option("eps", eps)

    def rule(rate, gradient, state, count):
        first = b1 * state["first"] + (1 - b1) * gradient
        second = b2 * state["second"] + (1 - b2) * gradient**2
        steps = count.astype(gradient.dtype)
        scale = jnp.sqrt(second / (1 - b2**steps)) + eps
        update = -rate * (first / (1 - b1**steps)) / scale
        return update, {"first": first, "second": second}

    def zero(table, dtype):
        return {"first": jnp.zeros_like(table, dtype), "second": jnp.zeros_like(table, dtype)}

    return _by_rows(learning_rate, zero, rule)


def apply_updates(tables: Any, updates: Any) -> Any:
    """``tables`` with the rows of ``updates`` added, in place where the tables are donated.

    Updates that are arrays are added as ``optax.apply_updates`` does: in the wider dtype, and
    rounded once.

    Args:
      tables: a pytree of arrays, [vocab, ...] where the update is ``SparseRows``.
      updates: of the same tree, with ``SparseRows`` or arrays.

    Raises:
      TypeError, ValueError: as :func:`jaxnets.kernels.add_rows`; or another tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import SparseRows
      >>> parameters = {"table": jnp.ones((3, 1)), "bias": jnp.ones(1)}
      >>> updates = {"table": SparseRows([2], jnp.ones((1, 1))), "bias": jnp.ones(1)}
      >>> parameters = apply_updates(parameters, updates)
      >>> parameters["table"][:, 0].tolist(), parameters["bias"].tolist()
      ([1.0, 1.0, 2.0], [2.0])
    """

    def add(update, table):
        if is_rows(update):
            return add_rows(table, update)
        return optax.apply_updates(table, update)

    return jax.tree.map(add, updates, tables, is_leaf=is_rows)


def is_rows(leaf: Any) -> bool:
    """Whether a leaf is ``SparseRows``, to be asked before it is taken apart."""
    return isinstance(leaf, SparseRows)


def _by_rows(
    learning_rate: optax.ScalarOrSchedule, start: Callable, rule: Callable
) -> optax.GradientTransformation:
    """Gathers the state's rows, applies ``rule(rate, gradient, state, count)``, and puts them back.

    ``start(table, dtype)`` makes a table's state, placed as the table is.
    """
    if not callable(learning_rate):
        learning_rate = as_option("learning_rate", learning_rate)

    def init(tables):
        leaves = [as_floats("tables", table) for table in jax.tree.leaves(tables)]
        states = [start(table, accumulator_dtype(table)) for table in leaves]
        return RowState(jnp.zeros((), jnp.int32), states)

    def update(gradients, state, params=None):
        del params
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
        updates, tables = [], []
        for rows, arrays in zip(leaves, state.tables, strict=True):
            if not is_rows(rows):
                raise TypeError(
                    f"gradients must be SparseRows for each table, got {type(rows).__name__}"
                )
            _check_values(rows.values, arrays)
            ids, dtype = rows.ids, accumulator_dtype(rows.values, *arrays.values())
            touched = {name: a.at[ids].get(mode="clip") for name, a in arrays.items()}
            values, touched = rule(
                jnp.asarray(rate).astype(dtype), rows.values.astype(dtype), touched, count
            )
            updates.append(rows._replace(values=values))
            tables.append({
                name: set_rows(arrays[name], rows._replace(values=new))
                for name, new in touched.items()
            })  # fmt: skip
        return jax.tree.unflatten(tree, updates), RowState(count, tables)

    return optax.GradientTransformation(init, update)


def _check_values(values: Any, arrays: dict[str, jax.Array]) -> None:
    as_floats("gradients", values)
    for array in arrays.values():
        if array.ndim > 1 and array.shape[1:] != values.shape[1:]:
            raise ValueError(
                f"gradients must have values [rows, ...] of the shape of the table's rows, "
                f"{array.shape[1:]}, got {values.shape[1:]}"
            )
