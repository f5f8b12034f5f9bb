"""One training loop: a jitted step over any flax.nnx module, evaluated, saved and resumed.

Batches, and the keys of their random numbers, are by the number of the step, so a run that is cut
and resumed sees what the whole run would have seen, and ends in the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxnets.checkpoints import Checkpoints
from jaxnets.optim import apply_updates
from jaxnets.optim.rows import is_rows

Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]]


class State(NamedTuple):
    """Everything that a step changes, as arrays."""

    parameters: Any  # the nnx.Params, as nested dicts
    rest: Any  # batch statistics, dropout's counters
    optimizer: Any


class Result(NamedTuple):
    """What a run gave; the model that was passed holds the parameters.

    Attributes:
      history: a dict for each evaluation: step, loss (the mean since the last), and the metrics.
      step: where it ended.
      best_step: whose parameters the model holds; ``step`` where nothing is monitored.
    """

    history: list[dict[str, Any]]
    step: int
    best_step: int


def fit(
    model: nnx.Module,
    loss: Loss | None,
    batch_at: Callable[[int], Any],
    steps: int,
    *,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    clip_norm: float | None = None,
    compute_dtype: DTypeLike | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    every: int = 100,
    monitor: str | None = None,
    mode: str = "max",
    patience: int | None = None,
    folder: Path | str | None = None,
    gradients: Callable[[Any, Any, jax.Array], tuple] | None = None,
    console: Console | None = None,
) -> Result:
    """Trains ``model`` in place.

    Args:
      model: any module; its ``nnx.Param`` are trained, its other state is carried along.
      loss: ``loss(model, batch, key) -> (loss, metrics)``, scalars; the model is in training mode.
        None where ``gradients`` is given.
      batch_at: the batch of step 0, 1, ...: a pytree of arrays. A new shape is a new compile.
      steps: how many, those of an earlier part of the run included.
      optimizer: any optax transformation.
      key: of all random numbers; step n gets ``fold_in(key, n)``.
      clip_norm: the largest norm of all gradients together (Pascanu et al. 2013); None: any.
      compute_dtype: ``jnp.bfloat16`` runs forward and backward in it (parameters and floats of the
        batch are cast); parameters, gradients and the optimiser stay as they are, in float32
        (Micikevicius et al. 2018). float16 is refused: it would need the loss scaled.
      evaluate: ``evaluate(model) -> metrics``, with the model in evaluation mode.
      every: steps from one evaluation, line of output and checkpoint to the next.
      monitor: a metric of ``evaluate``; the model ends with the parameters that had the best.
      mode: "max" or "min": which is best.
      patience: stop after so many evaluations without a new best.
      folder: for Orbax checkpoints. If it holds some, the run goes on from the last, and ends in
        the same bits as a run that was not cut.
      gradients: ``gradients(model, batch, key) -> ((loss, metrics), gradients)`` in place of
        ``loss`` and its differentiation; tables may have :class:`jaxnets.kernels.Rows` there, with
        an optimiser that takes them.
      console: where progress goes; None: the terminal.

    Raises:
      ValueError: an option out of range, or ``monitor`` not among the metrics.
      FloatingPointError: the loss is not finite.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from rich.console import Console
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> def loss(model, batch, key):
      ...     return ((model(batch) - batch.sum(1, keepdims=True)) ** 2).mean(), {}
      >>> def batch_at(step):
      ...     return jax.random.normal(jax.random.key(step), (16, 2))
      >>> result = fit(model, loss, batch_at, 300, optimizer=optax.adam(0.05),
      ...              key=jax.random.key(0), console=Console(quiet=True))
      >>> result.history[-1]["loss"] < 1e-3
      True
    """
    _check(compute_dtype, mode, every, monitor, patience, evaluate)
    if (loss is None) == (gradients is None):
        raise ValueError("give either loss or gradients, got " + ("both" if loss else "neither"))
    model.train()
    parts: Any = nnx.split(model, nnx.Param, ...)
    graph, *templates = parts
    parameters, rest = (nnx.to_pure_dict(part) for part in templates)
    state = State(parameters, rest, optimizer.init(parameters))
    state = _copy(state)  # the step takes its state's memory; the model keeps its own

    def module(parameters, rest):
        parts = tuple(jax.tree.map(lambda leaf: leaf, template) for template in templates)
        for part, values in zip(parts, (parameters, rest), strict=True):
            nnx.replace_by_pure_dict(part, values)
        return nnx.merge(graph, *parts)

    run = _Run(every, monitor, mode, patience)
    step_function = _step_function(module, loss, gradients, optimizer, clip_norm, compute_dtype)
    checkpoints = None if folder is None else Checkpoints(folder)
    best = None if monitor is None else _copy((state.parameters, state.rest))
    if checkpoints is not None and checkpoints.latest is not None:
        state, best, saved = checkpoints.restore(state, best)
        run.history, run.step, run.best_step = saved["history"], saved["step"], saved["best_step"]
    console = console or Console()
    with _progress(console) as bar:
        task = bar.add_task("", total=steps, completed=run.step)
        total = jnp.zeros(())
        while run.step < steps and not run.stopped:
            number = run.step
            state, values = step_function(state, batch_at(number), jax.random.fold_in(key, number))
            total = total + values["loss"]
            run.step += 1
            bar.update(task, completed=run.step)
            if run.step % every and run.step < steps:
                continue
            row = run.averages(total, values)
            total = jnp.zeros(())
            if evaluate is not None:
                view = module(state.parameters, state.rest)
                view.eval()
                row |= {name: float(value) for name, value in evaluate(view).items()}
            if run.add(row):
                best = _copy((state.parameters, state.rest))
            console.print(_line(row))
            if checkpoints is not None:
                saved = {
                    "history": run.history, "step": run.step, "best_step": run.best_step,
                }  # fmt: skip
                checkpoints.save(run.step, state, best, saved)
    if best is None:
        best, run.best_step = (state.parameters, state.rest), run.step
    nnx.update(model, nnx.state(module(*best)))
    return Result(run.history, run.step, run.best_step)


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _check(compute_dtype, mode, every, monitor, patience, evaluate) -> None:
    if compute_dtype is not None and jnp.dtype(compute_dtype) != jnp.bfloat16:
        raise ValueError(f"compute_dtype must be None or bfloat16, got {compute_dtype}")
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
    if every < 1:
        raise ValueError(f"every must be at least 1 step, got {every}")
    if monitor is not None and evaluate is None:
        raise ValueError(f"evaluate must be given to monitor {monitor!r}")
    if patience is not None and (monitor is None or patience < 1):
        raise ValueError(f"patience must be at least 1 and needs monitor, got {patience}")


class _Run:
    """The host's side of a run: where it is, and what it found."""

    def __init__(self, every: int, monitor: str | None, mode: str, patience: int | None):
        self.every, self.monitor, self.mode, self.patience = every, monitor, mode, patience
        self.history: list[dict[str, Any]] = []
        self.step = self.best_step = 0

    def averages(self, total, values) -> dict[str, Any]:
        """The row of this evaluation: the mean loss since the last, and the last step's metrics."""
        since = self.step - (self.history[-1]["step"] if self.history else 0)
        row = {"step": self.step, "loss": float(total) / since}
        if not np.isfinite(row["loss"]):
            raise FloatingPointError(f"the loss is {row['loss']} before step {self.step}")
        return row | {name: float(v) for name, v in values.items() if name != "loss"}

    def add(self, row: dict[str, Any]) -> bool:
        """Whether the row is the best so far."""
        self.history.append(row)
        if self.monitor is None:
            return False
        if self.monitor not in row:
            raise ValueError(f"monitor must be one of {tuple(row)}, got {self.monitor!r}")
        values = [r[self.monitor] for r in self.history]
        index = values.index(max(values) if self.mode == "max" else min(values))
        self.best_step = int(self.history[index]["step"])
        return index == len(values) - 1

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        if self.patience is None:
            return False
        return len([r for r in self.history if r["step"] > self.best_step]) >= self.patience


def _step_function(module, loss, gradients, optimizer, clip_norm, compute_dtype) -> Callable:
    def cast(tree):
        def leaf(array):
            floating = jnp.issubdtype(jnp.result_type(array), jnp.floating)
            return array.astype(compute_dtype) if floating else array

        return tree if compute_dtype is None else jax.tree.map(leaf, tree)

    def computing(model):
        """Flax's layers told so too: a float32 statistic would make what follows float32."""
        if compute_dtype is not None:
            for _, node in nnx.iter_graph(model):
                if isinstance(node, nnx.Module) and getattr(node, "dtype", 0) is None:
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
            result, metrics = loss(model, cast(batch), key)
            after = nnx.state(model, nnx.Not(nnx.Param))
            return result.astype(jnp.float32), (metrics, like(nnx.to_pure_dict(after), rest))

        (result, (metrics, rest)), gradient = jax.value_and_grad(value, has_aux=True)(parameters)
        return result, metrics, rest, gradient

    def given(parameters, rest, batch, key):
        model = computing(module(cast(parameters), rest))
        (result, metrics), gradient = gradients(model, cast(batch), key)
        after = nnx.state(model, nnx.Not(nnx.Param))
        return result.astype(jnp.float32), metrics, like(nnx.to_pure_dict(after), rest), gradient

    def step(state: State, batch, key):
        compute = differentiated if gradients is None else given
        result, metrics, rest, gradient = compute(state.parameters, state.rest, batch, key)
        if clip_norm is not None:
            gradient, norm = clip_by_norm(gradient, clip_norm)
            metrics = {**metrics, "gradient_norm": norm}
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.parameters)
        parameters = apply_updates(state.parameters, updates)
        return State(parameters, rest, optimizer_state), {"loss": result, **metrics}

    return jax.jit(step, donate_argnums=0)


def clip_by_norm(gradient: Any, limit: float) -> tuple[Any, jax.Array]:
    """``gradient`` scaled to a norm of at most ``limit``, and the norm that it had.

    A leaf may be :class:`jaxnets.kernels.Rows`, whose values count.
    """

    values = [
        leaf.values if is_rows(leaf) else leaf
        for leaf in jax.tree.leaves(gradient, is_leaf=is_rows)
    ]
    norm = optax.tree.norm(values)
    factor = jnp.minimum(1, limit / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))

    def scale(leaf):
        if is_rows(leaf):
            return leaf._replace(values=leaf.values * factor.astype(leaf.values.dtype))
        return leaf * factor.astype(leaf.dtype)

    return jax.tree.map(scale, gradient, is_leaf=is_rows), norm


def _progress(console: Console) -> Progress:
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left")
    return Progress(*columns, console=console, transient=True)


def _line(row: Mapping[str, Any]) -> str:
    rest = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
    return f"step {row['step']:>6,.0f}  {rest}"
