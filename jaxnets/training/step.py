"""The jitted step: forward, backward and the optimizer's update, in the state's own memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxnets.optim import apply_updates, clip_by_norm
from jaxnets.training.arguments import loss_and_metrics

OWN = ("step", "loss")  # names in a run's rows that no metric may have


class State(NamedTuple):
    """Everything that a step changes, as arrays."""

    parameters: Any  # the nnx.Params, as nested dicts
    rest: Any  # batch statistics, dropout's counters
    optimizer: Any


def own_copy(tree: Any) -> Any:
    """Each array in memory of its own, as a step needs that takes it; and none weakly typed.

    A checkpoint knows no weak types, and with them a resumed run would compute in other dtypes.
    """
    return jax.tree.map(lambda leaf: _strong(jnp.copy(leaf)), tree)


class Step:
    """``state, loss, metrics = step(state, batch, key)``; ``state`` is donated.

    Compiled for the devices of the first call. Where an array of its state or batch is committed to
    some, all of the state is brought there, and each array is where it was after every step: a run
    that goes on from a checkpoint, as a fresh one, runs the very program that the whole run does.
    """

    def __init__(
        self,
        module: Callable[[Any, Any], nnx.Module],
        loss: Callable | None,
        gradients: Callable | None,
        optimizer: optax.GradientTransformation,
        clip_norm: float | None,
        compute_dtype: DTypeLike | None,
    ):
        self._step = _step_function(module, loss, gradients, optimizer, clip_norm, compute_dtype)
        self._jitted: Callable | None = None

    def __call__(self, state: State, batch: Any, key: jax.Array) -> tuple[State, jax.Array, dict]:
        if self._jitted is None:
            state, shardings = _brought_together(state, batch)
            self._jitted = jax.jit(
                self._step, donate_argnums=0, out_shardings=(shardings, None, None)
            )
        return self._jitted(state, batch, key)


def _brought_together(state: State, batch: Any) -> tuple[State, Any]:
    """``state`` with each array committed if any is, or one of the batch; and their shardings."""
    arrays = [leaf for leaf in jax.tree.leaves((state, batch)) if isinstance(leaf, jax.Array)]
    homes = [leaf.sharding for leaf in arrays if leaf.committed]
    if not homes:
        return state, None
    home = homes[0]
    if isinstance(home, NamedSharding):
        home = NamedSharding(home.mesh, PartitionSpec())
    elif len(home.device_set) > 1:
        return state, None
    state = jax.tree.map(lambda leaf: leaf if leaf.committed else jax.device_put(leaf, home), state)
    return state, jax.tree.map(lambda leaf: leaf.sharding, state)


def _strong(leaf: jax.Array) -> jax.Array:
    return leaf.astype(leaf.dtype) if getattr(leaf, "weak_type", False) else leaf  # no key has it


def _step_function(module, loss, gradients, optimizer, clip_norm, compute_dtype) -> Callable:
    taken = OWN if clip_norm is None else (*OWN, "gradient_norm")

    def cast(tree):
        def leaf(array):
            floating = jnp.issubdtype(jnp.result_type(array), jnp.floating)
            return array.astype(compute_dtype) if floating else array

        return tree if compute_dtype is None else jax.tree.map(leaf, tree)

    def computing(model):
        """Flax's layers told so too: a float32 statistic would make what follows float32."""
        if compute_dtype is not None:
            for _, node in nnx.iter_graph(model):
                if isinstance(node, nnx.Module) and hasattr(node, "dtype") and node.dtype is None:
                    node.dtype = jnp.dtype(compute_dtype)
        return model

    def like(after, before):
        """State in the dtype that it had: bfloat16 may have touched it."""
        return jax.tree.map(
            lambda a, b: a if a.dtype == b.dtype else a.astype(b.dtype), after, before
        )

    def differentiated(parameters, rest, batch, key):
        def value(parameters):
            model = computing(module(cast(parameters), rest))
            returned = loss(model, cast(batch), key)
            result, metrics = loss_and_metrics(returned, "loss", taken)
            after = nnx.state(model, nnx.Not(nnx.Param))
            return result, (metrics, like(nnx.to_pure_dict(after), rest))

        (result, (metrics, rest)), gradient = jax.value_and_grad(value, has_aux=True)(parameters)
        return result, metrics, rest, gradient

    def given(parameters, rest, batch, key):
        model = computing(module(cast(parameters), rest))
        returned, gradient = gradients(model, cast(batch), key)
        if isinstance(gradient, nnx.State):
            gradient = nnx.to_pure_dict(gradient)
        result, metrics = loss_and_metrics(returned, "gradients", taken)
        after = nnx.state(model, nnx.Not(nnx.Param))
        return result, metrics, like(nnx.to_pure_dict(after), rest), gradient

    def step(state: State, batch, key):
        compute = differentiated if gradients is None else given
        result, metrics, rest, gradient = compute(state.parameters, state.rest, batch, key)
        if clip_norm is not None:
            gradient, norm = clip_by_norm(gradient, clip_norm)
            metrics = {**metrics, "gradient_norm": norm}
        with jax.numpy_dtype_promotion("standard"):  # optax takes powers to a whole number
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.parameters)
            parameters = apply_updates(state.parameters, updates)
        state = jax.tree.map(_strong, State(parameters, rest, optimizer_state))
        return state, result, metrics

    return step
