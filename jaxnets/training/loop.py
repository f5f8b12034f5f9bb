"""The training loop.

Batches, and the keys of their random numbers, are by the number of the step, so a run that is cut
and resumed sees what the whole run would have seen, and ends in the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxnets.checkpoints import Checkpoints
from jaxnets.kernels.checks import as_int
from jaxnets.training.arguments import batches_by_number, check_functions, check_options
from jaxnets.training.finite import Finite
from jaxnets.training.history import History
from jaxnets.training.holder import Holder
from jaxnets.training.interrupts import Interrupts
from jaxnets.training.step import State, Step, own_copy

Loss = Callable[[Any, Any, jax.Array], Any]


class Result(NamedTuple):
    """What a run gave; the model that was passed holds the parameters.

    Attributes:
      history: a dict for each evaluation: step, loss (the mean since the last), and the metrics.
      step: where it ended.
      best_step: whose parameters the model holds; ``step`` where nothing is monitored.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from rich.console import Console
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> result = fit(
      ...     model, lambda model, batch, key: model(batch).mean() ** 2, [jnp.ones((4, 2))] * 3, 3,
      ...     optimizer=optax.sgd(0.1), key=jax.random.key(0), console=Console(quiet=True),
      ... )
      >>> result.step, result.best_step, sorted(result.history[-1])
      (3, 3, ['loss', 'step'])
    """

    history: list[dict[str, Any]]
    step: int
    best_step: int


def fit(
    model: nnx.Module,
    loss: Loss | None,
    batch_at: Any,
    steps: SupportsIndex,
    *,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    clip_norm: float | None = None,
    compute_dtype: DTypeLike | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    every: SupportsIndex = 100,
    monitor: str | None = None,
    mode: Literal["max", "min"] = "max",
    patience: SupportsIndex | None = None,
    folder: Path | str | None = None,
    gradients: Callable[[Any, Any, jax.Array], tuple] | None = None,
    console: Console | None = None,
) -> Result:
    """Trains ``model`` in place.

    While it trains, the model holds the best parameters so far, or without ``monitor`` those of the
    last evaluation. If the run ends in an error, Ctrl-C too, it holds these, or without ``monitor``
    those of the last step if they are finite; a note of the error says of which step they are.

    Args:
      model: any module; its ``nnx.Param`` are trained, its other state is carried along.
      loss: ``loss(model, batch, key) -> (loss, metrics)``, scalars, or the loss alone; the model is
        in training mode. None where ``gradients`` is given.
      batch_at: the batch of step 0, 1, ..., a pytree of arrays: a function of the step, or what is
        indexed by it, as a list or :class:`jaxnets.sequences.BatchSource`. A new shape is a new
        compile.
      steps: how many, those of an earlier part of the run included.
      optimizer: any optax transformation.
      key: of all random numbers; step n gets ``fold_in(key, n)``.
      clip_norm: the largest norm of all gradients together (Pascanu et al. 2013); None: any.
      compute_dtype: ``jnp.bfloat16`` runs forward and backward in it (parameters and floats of the
        batch are cast); parameters, gradients and the optimizer stay as they are, in float32
        (Micikevicius et al. 2018). float16 is refused: it would need the loss scaled.
      evaluate: ``evaluate(model) -> metrics``, with the model in evaluation mode.
      every: steps from one evaluation, line of output and checkpoint to the next.
      monitor: a metric of ``evaluate``; the model ends with the parameters that had the best, the
        first of equals. NaN is never the best.
      mode: "max" or "min": which is best.
      patience: stop after so many evaluations without a new best.
      folder: for Orbax checkpoints; local. If it holds some, the run goes on from the last, on any
        number of devices, and ends in the same bits as a run that was not cut if they are as many.
        A damaged one is put aside with a warning, and the one before is taken. One run at a time
        may use a folder.
      gradients: ``gradients(model, batch, key) -> ((loss, metrics), gradients)`` in place of
        ``loss`` and its differentiation, as ``rows.value_and_grad(loss, has_aux=True)`` is; tables
        may have :class:`jaxnets.kernels.SparseRows` there, with an optimizer that takes them.
      console: where progress goes; None: the terminal.

    Raises:
      TypeError: an argument, or what ``loss`` or ``evaluate`` return, is of a wrong type.
      ValueError: an option out of range, ``monitor`` not among the metrics, a metric with a name
        that is taken ("step", "loss", another metric's), or ``folder`` has another model's,
        optimizer's or monitor's run, or more steps than ``steps``.
      FloatingPointError: the loss, or the state, is no longer finite, or the monitored metric has
        been NaN in every evaluation.
      RuntimeError: another run is using ``folder``.
      OSError: ``folder`` cannot be written to.

    Example:
      >>> import jax, numpy as np, optax
      >>> from flax import nnx
      >>> from rich.console import Console
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> def loss(model, batch, key):
      ...     return ((model(batch) - batch.sum(1, keepdims=True)) ** 2).mean(), {}
      >>> def batch_at(step):
      ...     return np.random.default_rng(step).normal(size=(16, 2)).astype(np.float32)
      >>> result = fit(model, loss, batch_at, 300, optimizer=optax.adam(0.05),
      ...              key=jax.random.key(0), console=Console(quiet=True))
      >>> result.history[-1]["loss"] < 1e-3
      True
    """
    check_functions(model, loss, gradients, optimizer, evaluate, key)
    steps, every = as_int("steps", steps, 1), as_int("every", every, 1)
    patience = None if patience is None else as_int("patience", patience)
    check_options(compute_dtype, clip_norm, mode, monitor, patience, evaluate)
    batch_of = batches_by_number(batch_at, steps)
    console = console or Console()

    model.train()
    holder = Holder(model)
    parameters, rest = holder.values()
    state = own_copy(State(parameters, rest, optimizer.init(parameters)))
    finite = Finite(state)
    holder.hold(state.parameters, state.rest, 0)
    step = Step(holder.module, loss, gradients, optimizer, clip_norm, compute_dtype)
    history = History(monitor, mode, patience)
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if folder is not None:
            setup = {"monitor": monitor, "mode": monitor and mode}
            checkpoints = stack.enter_context(contextlib.closing(Checkpoints(folder, setup)))
            state = _resume(checkpoints, state, holder, history, monitor)
            if steps < history.step:
                done = f"{history.step}, which the run in the folder {folder} has done"
                raise ValueError(f"steps must be at least {done}, got {steps}")
        total = jnp.zeros((), jnp.float32)
        interrupts = stack.enter_context(Interrupts())
        bar = stack.enter_context(_progress(console))
        task = bar.add_task("", total=steps, completed=history.step)
        try:
            while history.step < steps and not history.stopped:
                batch = batch_of(history.step)
                with interrupts.held():
                    step_key = jax.random.fold_in(key, history.step)
                    state, value, metrics = step(state, batch, step_key)
                    total = total + value
                    history.step += 1
                bar.update(task, completed=history.step)
                if history.step % every and history.step < steps:
                    continue
                mean = history.mean_loss(float(total))
                finite.check(state, history.step)
                evaluated = {} if evaluate is None else evaluate(holder.evaluated(state))
                is_best = history.add(mean, metrics, evaluated)
                total = jnp.zeros((), jnp.float32)
                if is_best or monitor is None:
                    holder.hold(state.parameters, state.rest, history.step)
                console.print(_line(history.rows[-1]))
                if checkpoints is not None:
                    best = None if monitor is None else holder.values()
                    checkpoints.save(history.step, state, best, history.saved())
            history.check_best()
        except BaseException as error:
            # Not what is no number, nor what a step that failed has taken.
            with contextlib.suppress(FloatingPointError, RuntimeError):
                if history.best is None and jnp.isfinite(total):
                    finite.check(state, history.step)
                    holder.hold(state.parameters, state.rest, history.step)
            error.add_note(f"The model holds the parameters of step {holder.step}.")
            raise
    return Result(history.rows, history.step, holder.step)


def _resume(checkpoints, state, holder, history, monitor) -> State:
    """The state of the newest checkpoint, if there is one; ``holder`` and ``history`` are told."""
    found = checkpoints.restore(state, None if monitor is None else holder.values())
    if found is None:
        return state
    state, best, saved = found
    history.restore(saved)
    best_step = history.best["step"] if history.best else history.step
    holder.hold(*(best or (state.parameters, state.rest)), best_step)
    return state


def _progress(console: Console) -> Progress:
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left")
    return Progress(*columns, console=console, transient=True)


def _line(row: Mapping[str, Any]) -> str:
    rest = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
    return f"step {row['step']:>6,.0f}  {rest}"
