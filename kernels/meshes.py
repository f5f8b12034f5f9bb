"""Data parallelism on meshes of any kind of axes: each device computes its own rows of a batch.

Where the axes of a mesh are ``Auto``, XLA splits a program by itself; in the user's ``shard_map``
(``Manual`` axes) arrays are a device's own already. Where they are ``Explicit``, the split of an
array is part of its type, and JAX refuses operations whose result has no evident one (reshapes,
look-ups, loops). There :func:`over_rows` reads the split of the batch from the types and runs the
function on each device's rows, whole tables beside them: what is sent is the sum of the tables'
gradients, which JAX's transposition of ``shard_map`` adds.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

WHOLE = -1
SUM = -2  # of a result: that of each device's own


class _Split(NamedTuple):
    """Over which axes of which mesh the batch is split."""

    mesh: Any
    axes: tuple[str, ...]


_current: ContextVar[_Split | None] = ContextVar("split of the batch", default=None)


def over_rows(*, results: Any = 0, **axes: Any) -> Callable:
    """A decorator: on ``Explicit`` meshes each device runs the function on its own rows.

    Args:
      results: the axis of the batch in what the function returns, as for an argument, or SUM: what
        the devices return is added up.
      axes: for each array argument the axis of the batch, or WHOLE; a pytree of such, or a function
        of all arguments (a dict) that gives it. The first named decides how the batch is split; an
        argument with one axis has no batch. What is not named is static; a ``sharding`` that
        splits anything says itself what each device runs.
    """

    def decorate(function):
        signature = inspect.signature(function)

        @wraps(function)
        def on_any_mesh(*args):
            given = signature.bind(*args).arguments
            if is_split(given):
                return function(*args)
            arrays = {name: given[name] for name in axes}
            if any(_varying(leaf) for leaf in jax.tree.leaves(arrays)):
                return _in_checked_shard_map(function, given, arrays)
            mesh = explicit_mesh(arrays)
            if mesh is None:
                return function(*args)
            places = {name: at(given) if callable(at) else at for name, at in axes.items()}
            split = split_of(arrays, places)
            if split is None:
                with jax.sharding.use_abstract_mesh(mesh):  # for the arrays that it makes
                    return function(**given | replicated(arrays))
            return _run(function, split, given, arrays, places, results)

        return on_any_mesh

    return decorate


def is_split(given: dict[str, Any]) -> bool:
    """Whether the arguments have a ``VocabSharding`` over a mesh."""
    sharding = given.get("sharding")
    return sharding is not None and sharding.is_split


def _run(
    function: Callable,
    split: _Split,
    given: dict[str, Any],
    arrays: dict[str, Any],
    places: dict[str, Any],
    results: Any,
) -> Any:
    at = results(given) if callable(results) else results

    def total(at, part):
        return lax.psum(part, split.axes) if at == SUM else part

    def local(arrays):
        token = _current.set(split)
        try:
            found = function(**given | arrays)
        finally:
            _current.reset(token)
        return jax.tree.map(total, at, found)

    in_specs = {name: _specs(places[name], split) for name in arrays}
    placed = jax.tree.map(
        lambda spec, tree: jax.tree.map(lambda a: _reshard(a, split.mesh, spec), tree),
        in_specs,
        arrays,
        is_leaf=lambda a: isinstance(a, P),
    )
    return jax.shard_map(
        local, mesh=split.mesh, in_specs=(in_specs,), out_specs=_specs(at, split),
        axis_names=set(split.axes), check_vma=False,
    )(placed)  # fmt: skip


def have_own_rows(array: Any, axis: int) -> bool:
    """Whether :func:`over_rows` leaves XLA nothing to split, so that a Pallas kernel may run.

    Args:
      array: the argument that decides.
      axis: of its batch.
    """
    if explicit_mesh(array) is None:
        return False
    split = split_of({"": array}, {"": axis})
    return split is not None and set(split.axes) == set(split.mesh.axis_names)


def _specs(places: Any, split: _Split) -> Any:
    return jax.tree.map(lambda at: P() if at < 0 else P(*(None,) * at, split.axes), places)


def split_of(arrays: dict[str, Any], places: dict[str, Any]) -> _Split | None:
    """How the batch is split, by the first array that has it, or None."""
    first = next(iter(arrays))
    if jax.tree.leaves(arrays[first])[0].ndim < 2:
        return None
    for name, tree in arrays.items():
        for at, leaf in zip(jax.tree.leaves(jax.tree.broadcast(places[name], tree)),
                            jax.tree.leaves(tree), strict=True):  # fmt: skip
            sharding = jax.typeof(leaf).sharding
            found = sharding.spec[at] if 0 <= at < len(sharding.spec) else None
            if found is not None:
                return _Split(sharding.mesh, (found,) if isinstance(found, str) else tuple(found))
    return None


def explicit_mesh(arrays: Any) -> Any:
    """The mesh of the first array that has ``Explicit`` axes, or None."""
    for leaf in jax.tree.leaves(arrays):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def replicated(arrays: Any) -> Any:
    """``arrays`` whole on every device of their ``Explicit`` mesh; unchanged on others."""
    mesh = explicit_mesh(arrays)
    if mesh is None:
        return arrays
    return jax.tree.map(lambda array: _reshard(array, mesh, P()), arrays)


def placed_like(like: Any, arrays: Any) -> Any:
    """``arrays``, replicated, split as those of ``like`` are on their ``Explicit`` mesh."""
    mesh = explicit_mesh(like)
    if mesh is None:
        return arrays
    return jax.tree.map(lambda a, b: _reshard(b, mesh, jax.typeof(a).sharding.spec), like, arrays)


def _reshard(array: Any, mesh: Any, spec: P) -> Any:
    sharding = jax.typeof(array).sharding
    if sharding.mesh == mesh and tuple(sharding.spec) == tuple(spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, spec))


def draw_rows(draw: Callable[[tuple[int, ...]], jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """``draw(shape)``, inside :func:`over_rows` this device's rows of what one device would draw.

    The whole batch is drawn on each: with one key they would else all draw the same.
    """
    split = _current.get()
    if split is None:
        return draw(shape)
    devices = math.prod(split.mesh.shape[axis] for axis in split.axes)
    whole = draw((shape[0] * devices, *shape[1:]))
    return lax.dynamic_slice_in_dim(whole, lax.axis_index(split.axes) * shape[0], shape[0])


def sum_over_rows(arrays: Any) -> Any:
    """``arrays`` as they are, inside :func:`over_rows` the sums of all devices' own."""
    split = _current.get()
    return arrays if split is None else lax.psum(arrays, split.axes)


def eager_gradients(function: Callable) -> Callable:
    """``function`` with scalars that ``jax.grad`` outside of ``jit`` takes.

    JAX 0.10 cannot make the 1 that a gradient starts from for a scalar of an ``Explicit`` mesh that
    ``jax.set_mesh`` does not name; for one of the same devices with ``Auto`` axes it can.
    """

    @wraps(function)
    def with_gradients(*args):
        return jax.tree.map(_differentiable, function(*args))

    return with_gradients


def _differentiable(array: Any) -> Any:
    value = array
    while isinstance(value, jax.core.Tracer) and hasattr(value, "primal"):
        value = value.primal
    eager = isinstance(array, jax.core.Tracer) and not isinstance(value, jax.core.Tracer)
    if not eager or array.ndim or not jax.sharding.get_abstract_mesh().empty:
        return array
    mesh = getattr(value.sharding, "mesh", None)
    if not isinstance(mesh, Mesh) or AxisType.Explicit not in mesh.axis_types:
        return array
    auto = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    return jax.device_put(array, NamedSharding(auto, P()))


def _varying(array: Any) -> frozenset[str]:
    """The axes of a ``shard_map`` with ``check_vma`` over which ``array`` differs."""
    kind = jax.typeof(array)
    of = getattr(kind, "manual_axis_type", None)
    return getattr(kind, "vma", frozenset()) if of is None else of.varying


def vary_like(example: jax.Array, arrays: Any) -> Any:
    """``arrays`` that differ, to ``check_vma``, over the axes that ``example`` differs over."""
    return jax.tree.map(lambda array: _vary(array, _varying(example)), arrays)


def _vary(array: Any, every: frozenset[str]) -> Any:
    missing = tuple(sorted(every - _varying(array)))
    return lax.pcast(array, missing, to="varying") if missing else array


def _in_checked_shard_map(function: Callable, given: dict[str, Any], arrays: dict[str, Any]) -> Any:
    every = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(arrays)))
    try:
        return function(**given | jax.tree.map(lambda array: _vary(array, every), arrays))
    except TypeError as error:
        if "manual axis types" not in str(error):
            raise
        raise ValueError(
            "inside jax.shard_map this function needs check_vma=False: write jax.shard_map(..., "
            f"check_vma=False); its arrays vary over {sorted(every)}"
        ) from error
