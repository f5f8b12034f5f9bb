"""Loss and gradient of any model, by rows for its tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.rows.distinct import check_tables, summed_rows
from jaxnets.kernels.rows.rows import SparseRows
from jaxnets.optim.partition import names_of_leaves
from jaxnets.rows.reads import Read, Reader, Table


def value_and_grad(
    loss: Callable,
    *,
    has_aux: bool = False,
    is_table: Callable[[tuple[str, ...]], bool] | None = None,
) -> Callable:
    r"""As ``nnx.value_and_grad``, or ``jax.value_and_grad``, with gradients of tables by rows.

    ``loss`` is any function. It is traced, and wherever it reads rows of a table by their ids
    (``table[ids]``, ``jnp.take(table, ids, axis=0)``, ``nnx.Embed``, a sampled loss,
    :func:`jaxnets.layers.look_up`, :func:`jaxnets.kernels.gather_rows`), the gradient of these rows
    is taken; those of equal ids are summed:

    .. math:: \partial L / \partial W_i = \sum_{k: \text{ids}_k = i} \partial L / \partial r_k,
        \qquad r_k = W_{\text{ids}_k}

    It is that of the whole table, without an array of the table's size. Reads may stand under
    ``jit``, ``vmap``, ``jax.checkpoint`` and ``lax.scan``, and a table may be read several times.
    Tables that are split over devices are read by ``gather_rows(table, ids, sharding=...)``.
    Outside of ``jit`` too nothing is known of values, so that an id out of range is no error: NaN.

    Args:
      loss: ``loss(model, *args)`` gives a float scalar, or with ``has_aux`` a pair of it and
        arrays; ``model`` is an ``nnx.Module`` or a pytree of float arrays.
      has_aux: whether ``loss`` returns a pair.
      is_table: of a parameter's path, as ("embedding", "weight"), whether its gradient comes by
        rows; as in :func:`jaxnets.optim.partition`. None: it does for each parameter of which rows
        are read.

    Returns:
      A function of what ``loss`` takes that gives ``(loss, gradients)``, or ``((loss, aux),
      gradients)``. The gradients are an ``nnx.State`` of the module's ``nnx.Param``, or a pytree as
      the parameters are, with :class:`jaxnets.kernels.SparseRows` for tables. The module's other
      state (dropout's counters, batch statistics) changes as ``loss`` changes it.

    Raises:
      TypeError: by that function, a loss that is no float scalar, or parameters that are no floats.
      ValueError: by that function, a table that is used whole too, in logits of all classes or by
        an operation that is not one of the above (``lax.cond``, ``jax.shard_map``, a Pallas
        kernel). ``is_table`` may leave it out, and its gradient is dense then; of
        ``jax.lax.stop_gradient(table)`` any use is free.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnets import optim, rows
      >>> model = nnx.Embed(1000, 4, embedding_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optim.sgd(0.1), wrt=nnx.Param)
      >>> @nnx.jit
      ... def step(model, optimizer, ids):
      ...     loss, gradients = rows.value_and_grad(lambda model: model(ids).sum())(model)
      ...     optimizer.update(model, gradients)
      ...     return loss, gradients["embedding"].get_value().ids
      >>> loss, ids = step(model, optimizer, jnp.array([3, 8, 3]))
      >>> float(loss), ids.tolist(), model.embedding[:9, 0].round(1).tolist()
      (12.0, [3, 8, 1002], [1.0, 1.0, 1.0, 0.8..., 1.0, 1.0, 1.0, 1.0, 0.9...])

      Of a pytree of parameters:

      >>> parameters = {"table": jnp.ones((1000, 4)), "scale": jnp.ones(4)}
      >>> def loss(parameters, ids):
      ...     return (parameters["table"][ids] * parameters["scale"]).sum()
      >>> value, gradients = jax.jit(rows.value_and_grad(loss))(parameters, jnp.array([3, 8, 3]))
      >>> gradients["table"].values[:, 0].tolist(), gradients["scale"].tolist()
      ([2.0, 1.0, 0.0], [3.0, 3.0, 3.0, 3.0])
    """

    @wraps(loss)
    def with_gradients(model, *args, **options):
        if not isinstance(model, nnx.Module):
            (value, aux), gradients = _of_parameters(
                lambda parameters: _pair(loss(parameters, *args, **options), has_aux),
                is_table, model,
            )  # fmt: skip
            return ((value, aux) if has_aux else value), gradients
        split: Any = nnx.split(model, nnx.Param, ...)
        graph, parameters, rest = split

        def of_module(parameters):
            module = nnx.merge(graph, parameters, rest, copy=True)  # variables of this trace
            value, aux = _pair(loss(module, *args, **options), has_aux)
            return value, (aux, nnx.state(module, nnx.Not(nnx.Param)))

        (value, (aux, after)), gradients = _of_parameters(of_module, is_table, parameters)
        nnx.update(model, after)
        return ((value, aux) if has_aux else value), gradients

    return with_gradients


def _pair(returned: Any, has_aux: bool) -> tuple[Any, Any]:
    """The loss and what comes beside it."""
    if has_aux and not (isinstance(returned, tuple) and len(returned) == 2):
        raise TypeError(f"loss must return (loss, aux) with has_aux, got {type(returned).__name__}")
    value, aux = returned if has_aux else (returned, None)
    if isinstance(value, tuple):
        raise TypeError("loss must return a scalar, got a tuple; say has_aux=True for (loss, aux)")
    if jnp.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            f"loss must return a float scalar, got {jnp.result_type(value)} of shape "
            f"{jnp.shape(value)}"
        )
    return value, aux


@jax.named_scope("rows.value_and_grad")
def _of_parameters(
    loss: Callable, is_table: Callable | None, parameters: Any
) -> tuple[tuple[Any, Any], Any]:
    """``((loss, aux), gradients)`` of a loss that returns a pair."""
    leaves, structure = jax.tree.flatten(parameters)
    paths, leaves = names_of_leaves(parameters), [jnp.asarray(leaf) for leaf in leaves]
    jaxpr, results = _traced(loss, structure, leaves)
    marked = {
        number
        for number, (path, leaf) in enumerate(zip(paths, leaves, strict=True))
        if leaf.ndim and (is_table is None or is_table(path))
    }

    def run(reader, marked, arrays, taps):
        args = [Table(i, a) if i in marked else a for i, a in enumerate(arrays)]
        return reader.run_to_arrays(jaxpr, args, taps)

    # Once in the abstract: which parameters are tables, and of what shapes the rows are.
    reader = Reader()
    _, shapes = jax.eval_shape(lambda arrays: run(reader, marked, arrays, None), leaves)
    tables = marked if is_table is not None else {read.table for read in _reads(shapes)}
    for name in sorted(tables & reader.whole.keys()):
        raise ValueError(
            f"{'.'.join(paths[name]) or 'the parameter'} must be read by rows alone to have its "
            f"gradient by rows, got it whole in {reader.whole[name]}; take a loss over samples, "
            "stop_gradient it there, or leave it out by is_table"
        )
    taps = jax.tree.map(
        lambda read: jnp.zeros(read.rows.shape, read.rows.dtype), shapes, is_leaf=_is_read
    )

    def differentiated(dense, taps):
        arrays = [dense.get(i, leaf) for i, leaf in enumerate(leaves)]
        (value, *aux), reads = run(Reader(), tables, arrays, taps)
        return value, (aux, reads)

    dense = {i: leaf for i, leaf in enumerate(leaves) if i not in tables}
    (value, (aux, reads)), (gradients, of_rows) = jax.value_and_grad(
        differentiated, (0, 1), has_aux=True
    )(dense, taps)
    found = list(zip(_reads(reads), jax.tree.leaves(of_rows), strict=True))
    for name in tables:
        of_table = [(read.ids, rows) for read, rows in found if read.table == name]
        gradients[name] = _summed(leaves[name], of_table)
    by_leaf = [gradients[i] for i in range(len(leaves))]
    return jax.tree.unflatten(results(), [value, *aux]), jax.tree.unflatten(structure, by_leaf)


def _traced(loss: Callable, structure: Any, leaves: list) -> tuple[Any, Callable]:
    """The jaxpr of ``loss`` over the leaves, and a function that gives its results' structure."""
    results = []

    def flat(leaves):
        found, tree = jax.tree.flatten(loss(jax.tree.unflatten(structure, leaves)))
        results.append(tree)
        return found

    return jax.make_jaxpr(flat)(leaves), results.pop


def _is_read(node: Any) -> bool:
    return isinstance(node, Read)


def _reads(tree: Any) -> list[Read]:
    """What a :class:`Reader` found, in a list."""
    return jax.tree.leaves(tree, is_leaf=_is_read)


def _summed(table: jax.Array, reads: list[tuple[jax.Array, jax.Array]]) -> SparseRows:
    """The gradient by rows, of ``(ids [...], gradients [..., features])`` of each read."""
    # Weight and bias, read at the same ids in another order, share one sort of them by this.
    reads = sorted(reads, key=lambda read: read[0].shape)
    vocab_size = check_tables(table, [ids for ids, _ in reads])
    if not reads:
        return SparseRows(jnp.zeros(0, jnp.int32), table[:0])
    total = summed_rows(reads, vocab_size, accumulator_dtype(table))
    return total._replace(values=total.values.astype(table.dtype))
