"""Where a traced function reads rows of its tables, and its gradient with respect to these rows.

JAX's gradient of ``table[ids]`` is a scatter into zeros of the table's size. Here a jaxpr is run
with its tables marked (:class:`Table`). A gather of rows is where a mark ends: its rows pass a tap,
a function of an argument [..., features] that changes nothing, and whose gradient is that of the
rows. Whatever else takes a table takes it whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jax.extend.core.primitives import (
    convert_element_type_p,
    dynamic_slice_p,
    gather_p,
    jit_p,
    remat_p,
    scan_p,
    stop_gradient_p,
)
from jax.extend.source_info_util import current_name_stack, summarize, user_context

from jaxnets.kernels.checks import as_integers
from jaxnets.kernels.rows.sharded import READ_SPLIT_ROWS


@dataclass(frozen=True)
class Table:
    """A parameter that has not been read yet, and the dtypes to which it is to be converted."""

    name: int
    array: jax.Array
    dtypes: tuple[Any, ...] = ()

    def converted(self, array: jax.Array) -> jax.Array:
        """``array``, the table or rows of it, in the dtype that the function sees."""
        for dtype in self.dtypes:
            array = array.astype(dtype)
        return array


@partial(jax.tree_util.register_dataclass, data_fields=["ids", "rows"], meta_fields=["table"])
@dataclass(frozen=True)
class Read:
    """Of which table, at which ids [...], and before there is a tap, the rows [..., features]."""

    table: int
    ids: Any
    rows: Any


class Reader:
    """Runs jaxprs some of whose arguments are :class:`Table`.

    Attributes:
      whole: of each table that something takes whole, the words for the first that does.
    """

    def __init__(self) -> None:
        self.whole: dict[int, str] = {}

    def run(self, jaxpr: Any, args: Any, taps: Any) -> tuple[list, dict]:
        """The results, and the reads.

        Args:
          jaxpr: open or closed.
          args: arrays and tables.
          taps: by the number of an equation the tap of its read, or such a dict of those inside it;
            None where they are not known yet.

        Returns:
          Arrays, or tables that went through; and :class:`Read` in the structure of ``taps``.
        """
        jaxpr, consts = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        reads: dict[int, Any] = {}

        def value(atom):
            return atom.val if isinstance(atom, Literal) else values[atom]

        for number, equation in enumerate(jaxpr.eqns):
            inputs = [value(atom) for atom in equation.invars]
            results, read = None, None
            if any(isinstance(a, Table) for a in inputs):
                tap = None if taps is None else taps.get(number, {})
                results, read = self._by_rows(equation, inputs, tap)
            if results is None:
                words = f"{equation.primitive.name} at {summarize(equation.source_info)}"
                results = _bind(equation, self._arrays(inputs, words))
            if read:
                reads[number] = read
            values.update(zip(equation.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars], reads

    def run_to_arrays(self, jaxpr: Any, args: Any, taps: Any) -> tuple[list, dict]:
        """:meth:`run`, whose results are arrays."""
        results, reads = self.run(jaxpr, args, taps)
        return self._arrays(results, "the result of a function"), reads

    def _arrays(self, values: Any, words: str) -> list:
        """``values`` with tables as arrays, taken whole by ``words``."""
        for a in values:
            if isinstance(a, Table):
                self.whole.setdefault(a.name, words)
        return [a.converted(a.array) if isinstance(a, Table) else a for a in values]

    def _by_rows(self, equation: Any, inputs: list, taps: Any) -> tuple[list | None, Any]:
        """Results and reads of what leaves tables as they are or reads their rows; else None."""
        kind, parameters = equation.primitive, equation.params
        if isinstance(inputs[0], Table):
            ids = _ids(equation, *inputs)
            if ids is not None:
                return _read(equation, ids, inputs, taps)
        if kind is convert_element_type_p and jnp.issubdtype(parameters["new_dtype"], jnp.floating):
            (table,) = inputs
            return [replace(table, dtypes=(*table.dtypes, parameters["new_dtype"]))], None
        if kind is stop_gradient_p:
            return [inputs[0].converted(inputs[0].array)], None
        if kind is jit_p and parameters["name"] == READ_SPLIT_ROWS:
            return _read(equation, inputs[1], inputs, taps)
        if kind is jit_p:
            return self.run(parameters["jaxpr"], inputs, taps)
        if kind is remat_p:
            return self._remat(parameters, inputs, taps)
        if kind is scan_p:
            return self._scan(equation, inputs, taps)
        return None, None

    def _remat(self, parameters: dict, inputs: list, taps: Any) -> tuple[list, dict]:
        tables = [a if isinstance(a, Table) else None for a in inputs]

        def run(arrays, taps):
            args = [a if a is not None else b for a, b in zip(tables, arrays, strict=True)]
            return self.run_to_arrays(parameters["jaxpr"], args, taps)

        arrays = [None if isinstance(a, Table) else a for a in inputs]
        options = {name: parameters[name] for name in ("policy", "prevent_cse")}
        return jax.checkpoint(run, **options)(arrays, taps)

    def _scan(self, equation: Any, inputs: list, taps: Any) -> tuple[list, dict]:
        inner = equation.params["jaxpr"]
        body = getattr(inner, "jaxpr", inner)

        # What is stacked has an axis more outside of the loop than inside.
        def stacked(outside, inside):
            pairs = zip(outside, inside, strict=True)
            return sum(a.aval.ndim != b.aval.ndim for a, b in pairs)

        carries = len(body.outvars) - stacked(equation.outvars, body.outvars)
        end = len(inputs) - stacked(equation.invars, body.invars)
        constants, start = inputs[: end - carries], inputs[end - carries :]
        start = self._arrays(start, f"scan at {summarize(equation.source_info)}")

        def step(carry, along):
            slices, taps = along
            results, reads = self.run_to_arrays(inner, [*constants, *carry, *slices], taps)
            return results[:carries], (results[carries:], reads)

        options = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
        along = start[carries:], taps
        carry, (results, reads) = jax.lax.scan(step, start[:carries], along, **options)
        return [*carry, *results], reads


def _bind(equation: Any, inputs: list) -> list:
    """The equation's results, under the names and the mesh that it was traced with."""
    bound: Any = equation.primitive.get_bind_params(equation.params)
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)  # before jax 0.12
    source = equation.source_info
    names = current_name_stack() + source.name_stack
    with user_context(source.traceback, name_stack=names), equation.ctx.manager:
        results = equation.primitive.bind(*functions, *inputs, **parameters)
    return list(results) if equation.primitive.multiple_results else [results]


def _ids(equation: Any, table: Table, *at: Any) -> jax.Array | None:
    """The ids [...] of the rows that an equation reads as [..., features]; None: it does not."""
    kind, parameters, last = equation.primitive, equation.params, len(table.array) - 1
    if tuple(parameters.get("slice_sizes", ())) != (1, *table.array.shape[1:]):
        return None
    if kind is dynamic_slice_p:  # table[id]
        return as_integers("ids", at[0])[None].clip(0, last)
    if kind is not gather_p:
        return None
    numbers = parameters["dimension_numbers"]
    clips = parameters["mode"] == jax.lax.GatherScatterMode.CLIP
    # vmap of table[id] indexes all axes, of which clipping leaves only the first a choice.
    by_id = numbers.start_index_map[:1] == (0,) if clips else numbers.start_index_map == (0,)
    collapsed = numbers.collapsed_slice_dims
    if not by_id or collapsed not in ((), (0,)) or numbers.operand_batching_dims:
        return None
    ids = as_integers("ids", at[0][..., 0])
    ids = ids.clip(0, last) if clips else ids
    return ids if collapsed else ids[..., None]


def _read(equation: Any, ids: jax.Array, inputs: list, tap: Any) -> tuple[list, Read]:
    """The rows that an equation reads, through their tap, and the read."""
    table = inputs[0]
    (rows,) = _bind(equation, [table.array, *inputs[1:]])
    # The ids' axes may stand behind those of the features, or between them.
    features = last = tuple(range(ids.ndim, rows.ndim))
    if equation.primitive is gather_p:
        offsets = equation.params["dimension_numbers"].offset_dims
        features = offsets[len(offsets) - len(last) :]
    rows = jnp.moveaxis(rows, features, last)
    read = Read(table.name, ids, rows if tap is None else None)
    if tap is not None:
        rows = _tapped(rows, tap)
    return [table.converted(jnp.moveaxis(rows, last, features))], read


@jax.custom_jvp
def _tapped(rows: jax.Array, tap: jax.Array) -> jax.Array:
    """``rows``, whose gradient goes to ``tap``."""
    del tap
    return rows


@_tapped.defjvp
def _tapped_jvp(primals, tangents):
    return primals[0], tangents[1]
