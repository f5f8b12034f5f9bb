"""Checkpoints of a training run, by Orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class Checkpoints:
    """The last two checkpoints of a run in a folder: its state, its best, and its history."""

    def __init__(self, folder: Path | str):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(Path(folder).resolve(), options=options)

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint; None: there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, best: Any, saved: dict) -> None:
        """Saves; ``saved`` is JSON."""
        arrays = {"state": _without_keys(state), "best": _without_keys(best)}
        self._manager.save(
            step, args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), run=ocp.args.JsonSave(saved)
            ),
        )  # fmt: skip
        self._manager.wait_until_finished()

    def restore(self, state: Any, best: Any) -> tuple[Any, Any, dict]:
        """The last checkpoint; ``state`` and ``best`` have the structure that was saved."""
        arrays = {"state": _without_keys(state), "best": _without_keys(best)}
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
        restored = self._manager.restore(
            self.latest, args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(shapes), run=ocp.args.JsonRestore()
            ),
        )  # fmt: skip
        return (
            _with_keys(restored.arrays["state"], state),
            _with_keys(restored.arrays["best"], best),
            restored.run,
        )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(tree: Any) -> Any:
    """Random keys as the integers that they are made of."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _with_keys(restored: Any, like: Any) -> Any:
    def leaf(array, wanted):
        if _is_key(wanted):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(wanted))
        return array

    return jax.tree.map(leaf, restored, like)
