"""What `fit` is given, and what its functions return: the best, names, and slips."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnets.sequences import BatchSource, bucket_plan
from jaxnets.training.history import History
from tests.inputs import on_device, ones
from tests.small_run import INF, NAN, Model, after, batch_at, evaluations, kernel, loss, run

pytestmark = pytest.mark.usefixtures("cheap_parameters")

BEST = [
    ("max", (NAN, 0.7, 0.9), 30),
    ("min", (NAN, 0.9, 0.7, NAN), 30),
    ("max", (0.7, NAN, 0.7), 10),
    ("min", (0.7, 0.7, 0.9), 10),
    ("min", (INF, 3.0, -INF), 30),
    ("max", (-INF, NAN, -INF), 10),
    ("max", (0.1, INF, INF), 20),
    ("max", (on_device(1, np.float32), np.float64(2), True), 20),
]


@pytest.mark.parametrize(("mode", "values", "best"), BEST)
def test_the_best_is_the_first_of_equals_and_never_nan(mode, values, best):
    history = History("score", mode, None)
    for value in values:
        history.step += 10
        is_best = history.add(0.5, {}, {"score": value})
        assert is_best == (history.best is not None and history.best["step"] == history.step)
    assert history.best["step"] == best


@pytest.mark.parametrize("mode", ["max", "min"])
def test_ends_with_the_best(mode):
    options, seen = evaluations(NAN, 0.7, 0.9, 0.7, NAN)
    model, result = run(50, mode=mode, **options)
    assert result.best_step == {"max": 30, "min": 20}[mode]
    np.testing.assert_array_equal(kernel(model), seen[result.best_step // 10 - 1])


def test_patience_after_nan():
    options, seen = evaluations(NAN, 0.7, 0.9, NAN, 0.8)
    model, result = run(100, patience=2, **options)
    assert (result.step, result.best_step) == (50, 30)
    np.testing.assert_array_equal(kernel(model), seen[2])


@pytest.mark.parametrize("patience", [None, 3])
def test_nan_in_each_evaluation(patience):
    options, seen = evaluations(*[NAN] * 3)
    model = Model()
    with pytest.raises(FloatingPointError, match="'score', which is monitored, is NaN in each"):
        run(30 if patience is None else 100, model=model, patience=patience, **options)
    np.testing.assert_array_equal(kernel(model), seen[-1])


METRICS = {
    "loss must not call a metric 'loss'": (ValueError, {"loss": 1.0}, {}),
    "loss must not call a metric 'step'": (ValueError, {"step": 1.0}, {}),
    "loss must not call a metric 'gradient_norm'": (ValueError, {"gradient_norm": 1.0}, {}),
    "evaluate must not call a metric 'loss'": (ValueError, {}, {"loss": 1.0}),
    "evaluate must not call a metric 'step'": (ValueError, {}, {"step": 1.0}),
    "evaluate must not call a metric 'same'": (ValueError, {"same": 1.0}, {"same": 1.0}),
    r"loss must return scalars; 'a' has shape \(2,\)": (ValueError, {"a": ones(2)}, {}),
    r"evaluate must return scalars; 'a' has shape \(1,\)": (ValueError, {}, {"a": np.ones(1)}),
    "evaluate must return scalars; 'a' is str": (TypeError, {}, {"a": "0.5"}),
    "evaluate must return metrics as a mapping of names, got None": (TypeError, {}, None),
    "evaluate must return metrics as a mapping of names, got float 0.5": (TypeError, {}, 0.5),
    "loss must return metrics as a mapping of names, got list": (TypeError, [1.0], {}),
    "loss must return metrics by names, got the name 3": (TypeError, {3: 1.0}, {}),
}


@pytest.mark.parametrize("message", METRICS)
def test_metrics(message, users_checks):
    error, metrics, evaluated = METRICS[message]
    with pytest.raises(error, match=message):
        run(
            1,
            loss=lambda *args: (loss(*args), metrics),
            evaluate=lambda model: evaluated,
            clip_norm=1.0,
        )


LOSSES = {
    r"loss must be a scalar, got shape \(8, 1\): take its mean": lambda model, b, key: model(b),
    "the loss must be floating point, got int32": lambda *_: jnp.int32(1),
    r"must return the loss, or \(loss, metrics\); the loss is None": lambda *_: None,
    r"must return the loss, or \(loss, metrics\); the loss is dict": lambda *_: ({}, 1.0),
    r"must return the loss, or \(loss, metrics\), got 3 values": lambda *_: (1.0, 2.0, 3.0),
    r"loss must be a function of \(model, batch, key\), got one of": lambda model, batch: 0.0,
}


@pytest.mark.parametrize("message", LOSSES)
def test_losses(message):
    with pytest.raises((TypeError, ValueError), match=message):
        run(1, loss=LOSSES[message])


SLIPS = {
    "steps must be at least 1, got 0": {"steps": 0},
    "steps must be at least 1, got -3": {"steps": -3},
    "steps must be an integer, got 10.0": {"steps": 10.0},
    "every must be an integer, got 0.5": {"every": 0.5},
    "patience must be an integer, got True": {"patience": True},
    "clip_norm must be above 0, got 0": {"clip_norm": 0},
    "clip_norm must be above 0, got nan": {"clip_norm": math.nan},
    r"key must be a random key, as jax.random.key\(0\), got int 0": {"key": 0},
    r"key must be a random key, .* got an array of shape \(2,\)": {
        "key": jax.random.split(jax.random.key(0))
    },
    "optimizer must be an optax transformation, .* got adam": {"optimizer": optax.adam},
    "model must be a flax.nnx module, got dict": {"model": {"a": 1}},
    "batch_at must be a function of the step, .* got generator": {
        "batch_at": (batch_at(i) for i in range(3))
    },
    "batch_at must be a function of the step, .* got dict": {"batch_at": {"inputs": 1}},
    r"batch_at must be a function of \(step\), got one of \(\)": {"batch_at": lambda: 1},
    "batch_at must have a batch for each of 5 steps, got 3": {
        "batch_at": [batch_at(i) for i in range(3)]
    },
    r"evaluate must be a function of \(model\), got dict": {"evaluate": {"a": 1}},
}


@pytest.mark.parametrize("message", SLIPS)
def test_slips(message, users_checks):
    with pytest.raises((TypeError, ValueError), match=message):
        run(**{"steps": 5, **SLIPS[message]})


def test_batches_may_be_indexed():
    expected = after(6)
    batches = [batch_at(step) for step in range(7)]
    np.testing.assert_array_equal(after(6, batch_at=batches), expected)
    np.testing.assert_array_equal(after(np.int64(6), batch_at=np.stack(batches)), expected)

    source = BatchSource(bucket_plan([4] * 24, [4], batch=8), [list(np.concatenate(batches)[:24])])
    _, result = run(3, batch_at=source, loss=lambda m, b, key: loss(m, b.sequences[0], key))
    assert result.history[0].keys() == {"step", "loss"}
    with pytest.raises(ValueError, match="batch for each of 4 steps, got 3: give it more epochs"):
        run(4, batch_at=source)


def test_gradients_may_come_with_the_loss_alone():
    def gradients(model, batch, key):
        return nnx.value_and_grad(loss)(model, batch, key)

    def pure(model, batch, key):
        result, gradient = gradients(model, batch, key)
        return result, nnx.to_pure_dict(gradient)

    actual = after(5, loss=None, gradients=pure)
    np.testing.assert_allclose(actual, after(5), rtol=1e-5)
