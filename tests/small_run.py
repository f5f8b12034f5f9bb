"""A small model, and runs of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

from jaxnets.training import fit

NAN, INF = math.nan, math.inf
OPTIONS = {
    "optimizer": optax.sgd(1e-2, momentum=0.9),
    "key": jax.random.key(0),
    "console": Console(quiet=True),
}


class Model(nnx.Module):
    def __init__(self, width=8):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, width, rngs=rngs)
        self.last = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, inputs):
        return self.last(nnx.relu(self.first(inputs)))


def batch_at(step):
    return np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32)


def loss(model, batch, key):
    return jnp.square(model(batch) - batch.sum(1, keepdims=True)).mean()


def run(steps, *, model=None, loss=loss, batch_at=batch_at, **options):
    model = model or Model()
    return model, fit(model, loss, batch_at, steps, **{"every": 10, **OPTIONS, **options})


def kernel(model):
    return np.array(model.first.kernel[...])


def after(steps, **options):
    return kernel(run(steps, **options)[0])


def evaluations(*values):
    """An ``evaluate`` with these values of "score", and the kernels that it saw."""
    values, seen = iter(values), []

    def evaluate(model):
        seen.append(kernel(model))
        return {"score": next(values)}

    return {"evaluate": evaluate, "monitor": "score"}, seen


def scores():
    return {"evaluate": lambda model: {"score": 1.0, "other": 2.0}, "monitor": "score"}
