"""The model that is trained, and modules like it with other values."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from jaxnets.training.step import State, own_copy


class Holder:
    """Of the user's model. Between evaluations it holds what a run that ends now would give.

    Attributes:
      step: whose parameters the model holds.
    """

    def __init__(self, model: nnx.Module):
        self._model, self.step = model, 0
        parts: Any = nnx.split(model, nnx.Param, ...)
        self._graph, *templates = parts
        # Shapes only: the arrays that the model begins with need not stay in memory.
        self._templates = [jax.eval_shape(lambda part: part, part) for part in templates]

    def values(self) -> tuple[Any, Any]:
        """The model's parameters, and the rest of its state, as nested dicts."""
        parts: Any = nnx.split(self._model, nnx.Param, ...)
        return nnx.to_pure_dict(parts[1]), nnx.to_pure_dict(parts[2])

    def module(self, parameters: Any, rest: Any) -> nnx.Module:
        """A module like the model, with these values."""
        parts = tuple(jax.tree.map(lambda leaf: leaf, template) for template in self._templates)
        for part, values in zip(parts, (parameters, rest), strict=True):
            nnx.replace_by_pure_dict(part, values)
        return nnx.merge(self._graph, *parts)

    def evaluated(self, state: State) -> nnx.Module:
        """A module with the values of ``state``, in evaluation mode."""
        module = self.module(state.parameters, state.rest)
        module.eval()
        return module

    def hold(self, parameters: Any, rest: Any, step: int) -> None:
        """Gives the model a copy of these values, of ``step``: a step takes the originals."""
        nnx.update(self._model, nnx.state(self.module(*own_copy((parameters, rest)))))
        self.step = step
