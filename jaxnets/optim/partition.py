"""One optimiser for the tables of a model, another for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxnets.optim.rows import is_rows


def partition(
    tables: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    is_table: Callable[[tuple[str, ...]], bool],
) -> optax.GradientTransformation:
    """``tables`` for the parameters whose path ``is_table`` names, ``rest`` for the others.

    ``optax.partition`` does the same for arrays; here a table's gradient and update may be
    :class:`jaxnets.kernels.Rows`.

    Args:
      tables: of this package.
      rest: any of optax.
      is_table: of a parameter's path, as ("embedding", "weight").

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import Rows
      >>> parameters = {"table": jnp.ones((5, 2)), "bias": jnp.ones(2)}
      >>> optimizer = partition(optim.sgd(1.0), optax.sgd(0.5), lambda path: path[0] == "table")
      >>> gradients = {"table": Rows(jnp.array([3]), jnp.ones((1, 2))), "bias": jnp.ones(2)}
      >>> updates, state = optimizer.update(gradients, optimizer.init(parameters), parameters)
      >>> parameters = optim.apply_updates(parameters, updates)
      >>> parameters["table"][:, 0].tolist(), parameters["bias"].tolist()
      ([1.0, 1.0, 1.0, 0.0, 1.0], [0.5, 0.5])
    """

    def split(tree) -> tuple[list[bool], list, list, Any]:
        paths, structure = jax.tree.flatten_with_path(tree, is_leaf=is_rows)
        chosen = [is_table(tuple(str(getattr(k, "key", k)) for k in path)) for path, _ in paths]
        parts: dict[bool, list] = {True: [], False: []}
        for choice, (_, leaf) in zip(chosen, paths, strict=True):
            parts[choice].append(leaf)
        return chosen, parts[True], parts[False], structure

    def init(parameters):
        _, table_leaves, leaves, _ = split(parameters)
        return tables.init(table_leaves), rest.init(leaves)

    def update(gradients, state, parameters=None):
        chosen, table_leaves, leaves, structure = split(gradients)
        old = (None, None) if parameters is None else split(parameters)[1:3]
        table_updates, table_state = tables.update(table_leaves, state[0], old[0])
        updates, rest_state = rest.update(leaves, state[1], old[1])
        sources = {True: iter(table_updates), False: iter(updates)}
        merged = [next(sources[choice]) for choice in chosen]
        return jax.tree.unflatten(structure, merged), (table_state, rest_state)

    return optax.GradientTransformation(init, update)
