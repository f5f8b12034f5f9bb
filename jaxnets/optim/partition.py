"""One optimizer for the tables of a model, another for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from flax.core.meta import AxisMetadata

from jaxnets.optim.by_rows import is_rows


def partition(
    tables: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    is_table: Callable[[tuple[str, ...]], bool],
) -> optax.GradientTransformation:
    """``tables`` for the parameters whose path ``is_table`` names, ``rest`` for the others.

    ``optax.partition`` does the same for arrays; here a table's gradient and update may be
    :class:`jaxnets.kernels.SparseRows`.

    Args:
      tables: of this package.
      rest: any of optax.
      is_table: of a parameter's path by the names that its module has, as ("embedding", "weight");
        of a list's elements "0", "1", ... It is the same for an ``nnx.State``, its pure dict and
        linen's parameters.

    Raises:
      TypeError: a gradient by rows for a parameter that ``is_table`` does not name.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> parameters = {"table": jnp.ones((5, 2)), "bias": jnp.ones(2)}
      >>> optimizer = partition(optim.sgd(1.0), optax.sgd(0.5), lambda path: path[0] == "table")
      >>> gradients = {"table": SparseRows(jnp.array([3]), jnp.ones((1, 2))), "bias": jnp.ones(2)}
      >>> state = optimizer.init(parameters)
      >>> updates, state = jax.jit(optimizer.update)(gradients, state, parameters)
      >>> parameters = optim.apply_updates(parameters, updates)
      >>> parameters["table"][:, 0].tolist(), parameters["bias"].tolist()
      ([1.0, 1.0, 1.0, 0.0, 1.0], [0.5, 0.5])
    """

    def split(tree) -> tuple[list[bool], list, list, Any]:
        leaves, structure = jax.tree.flatten(tree, is_leaf=is_rows)
        paths = names_of_leaves(tree)
        chosen = [bool(is_table(path)) for path in paths]
        parts: dict[bool, list] = {True: [], False: []}
        for path, choice, leaf in zip(paths, chosen, leaves, strict=True):
            if is_rows(leaf) and not choice:
                raise TypeError(
                    f"the gradient of {path} is SparseRows, but is_table does not name it"
                )
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


def names_of_leaves(tree: Any) -> list[tuple[str, ...]]:
    """The names on the way to each leaf; what is in a box, nnx's or linen's, has the box's name."""

    def is_leaf(node):
        return is_rows(node) or isinstance(node, nnx.Variable | AxisMetadata)

    found = []
    for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=is_leaf):
        names = tuple(map(_name, path))
        found += [names] * len(jax.tree.leaves(leaf, is_leaf=is_rows))
    return found


def _name(key: Any) -> str:
    """What a user calls one step of a path: a key, an attribute or an index."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
