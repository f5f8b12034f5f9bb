"""How an output layer is split over devices, and what every sharded function does first."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnets.kernels.checks import in_range


class VocabSharding(NamedTuple):
    """Classes split over one or more axes of a mesh, tokens over others.

    Attributes:
      mesh: of devices, with axes of any type.
      vocab_axis: the axis, or the axes, over which the classes of tables are split; None: every
        device has the whole table (of gathered rows, say).
      token_axis: the axis, or the axes, over which the first axis of hidden states and labels is
        split; None: every device sees all tokens. A table that is split over one of them as well,
        as FSDP has it, is gathered once a step.

    Example:
      >>> import jax
      >>> sharding = VocabSharding(jax.make_mesh((1, 1), ("data", "vocab")), "vocab", "data")
      >>> sharding.table_spec, sharding.token_spec, sharding.shards
      (P('vocab',), P('data',), 1)
    """

    mesh: Mesh
    vocab_axis: str | tuple[str, ...] | None
    token_axis: str | tuple[str, ...] | None = None

    @property
    def table_spec(self) -> P:
        """Of tables [vocab, ...], biases [vocab] and their optimizer state."""
        return P(_as_spec(self.vocab_axis)) if self.vocab_axis else P()

    def weight_spec(self, features_first: bool) -> P:
        """Of a table in either layout."""
        return P(None, *self.table_spec) if features_first else self.table_spec

    @property
    def token_spec(self) -> P:
        """Of hidden states [..., features], labels [...] and losses [...]."""
        return P(_as_spec(self.token_axis)) if self.token_axis else P()

    @property
    def vocab_axes(self) -> tuple[str, ...]:
        """The axes of ``vocab_axis``, as a tuple."""
        return _as_axes(self.vocab_axis)

    @property
    def token_axes(self) -> tuple[str, ...]:
        """The axes of ``token_axis``, as a tuple."""
        return _as_axes(self.token_axis)

    @property
    def shards(self) -> int:
        """How many parts the vocabulary is in."""
        return self._devices(self.vocab_axes)

    @property
    def token_shards(self) -> int:
        """How many parts the tokens are in."""
        return self._devices(self.token_axes)

    def _devices(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def is_split(self) -> bool:
        """Whether there is a mesh: it is not ``UNSPLIT``."""
        return not self.mesh.empty

    def check(self, vocab_size: int, tokens_shape: tuple[int, ...]) -> None:
        """Raise unless the axes are the mesh's and divide the arrays."""
        if not self.is_split:
            return
        axes = (*self.vocab_axes, *self.token_axes)
        if unknown := [axis for axis in axes if axis not in self.mesh.shape]:
            raise ValueError(f"sharding names {unknown}, the mesh has {self.mesh.axis_names}")
        if len(set(axes)) != len(axes):
            raise ValueError(f"sharding must name an axis once, got {axes}")
        if vocab_size % self.shards:
            raise ValueError(
                f"vocab_size must be a multiple of the {self.shards} shards, got {vocab_size}: pad "
                "weight with rows of zeros and bias with -inf"
            )
        parts = self.token_shards
        if not tokens_shape or tokens_shape[0] % parts:
            raise ValueError(
                f"the first axis of hidden must be a multiple of the {parts} devices of "
                f"{self.token_axis!r}, got shape {tokens_shape}"
            )

    def place(self, array: Any, spec: P) -> Any:
        """``array`` laid out as ``spec`` says over those of the mesh's axes that are explicit.

        XLA lays arrays out by itself over the others.
        """
        if array is None or AxisType.Explicit not in self.mesh.axis_types:
            return array
        explicit = {n for n, t in zip(self.mesh.axis_names, self.mesh.axis_types, strict=True)
                    if t == AxisType.Explicit}  # fmt: skip
        named = (tuple(a for a in _as_axes(axes) if a in explicit) or None for axes in spec)
        return jax.sharding.reshard(array, NamedSharding(self.mesh, P(*named)))

    def place_tokens(self, *arrays: Any) -> list[Any]:
        """``arrays`` [tokens, ...] laid out alike, so that they can be computed with."""
        return [self.place(array, self.token_spec) for array in arrays]

    def run(self, function: Callable, in_specs: Any, out_specs: Any, *arrays: Any) -> Any:
        """``shard_map`` of a function that does its own collectives and is not differentiated.

        Where nothing is split it is the function itself.
        """
        if not self.is_split:
            return function(*arrays)
        placed = jax.tree.map(self.place, arrays, jax.tree.broadcast(in_specs, arrays))
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )(*placed)

    def local_ids(self, ids: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """Inside ``run``: ids into this device's ``size`` classes, and which of them are its own.

        What is another's becomes ``size``, out of bounds.
        """
        local = ids - self.start(size)
        own = in_range(local, size)
        return jnp.where(own, local, size).astype(jnp.int32), own

    def start(self, size: int) -> jax.Array | int:
        """Inside ``run``: the first class of this device."""
        return lax.axis_index(self.vocab_axes) * size if self.vocab_axes else 0

    def sum_over_vocab(self, tree: Any) -> Any:
        """Inside ``run``: the sum over the shards of the vocabulary."""
        return lax.psum(tree, self.vocab_axes) if self.vocab_axes else tree

    def max_over_vocab(self, array: jax.Array) -> jax.Array:
        """Inside ``run``: the maximum over the shards of the vocabulary."""
        return lax.pmax(array, self.vocab_axes) if self.vocab_axes else array

    def sum_over_tokens(self, tree: Any) -> Any:
        """Inside ``run``: the sum over the devices that have other tokens."""
        return lax.psum(tree, self.token_axes) if self.token_axes else tree


#: Of one device: every collective is the identity, so an operation is written once.
UNSPLIT = VocabSharding(Mesh(np.empty((), object), ()), None)


def as_sharding(sharding: Any) -> VocabSharding:
    """``sharding``, with axes in lists as tuples; None is ``UNSPLIT``.

    Raises:
      TypeError: it is something else, for example the mesh.
    """
    if sharding is None:
        return UNSPLIT
    if isinstance(sharding, VocabSharding):
        return VocabSharding(sharding.mesh, *map(_hashable, sharding[1:]))
    if isinstance(sharding, Mesh):
        first = sharding.axis_names[0]
        raise TypeError(
            "sharding must be a VocabSharding, which names the axes of classes and tokens, got a "
            f"Mesh with {sharding.axis_names}: write VocabSharding(mesh, vocab_axis={first!r})"
        )
    raise TypeError(f"sharding must be a VocabSharding, got {type(sharding).__name__}")


def _as_axes(axes: Any) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _as_spec(axes: Any) -> Any:
    return axes if isinstance(axes, str) else tuple(axes)


def _hashable(axes: Any) -> Any:
    return tuple(axes) if isinstance(axes, list) else axes
