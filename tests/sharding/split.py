"""A projection, meshes and shardings that the tests of losses over several devices share."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from jaxnets.kernels import VocabSharding
from tests.near import assert_near

VOCAB, FEATURES, BATCH, TIME = 1600, 24, 8, 3


def make_mesh(kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(kind, kind))


SHARDINGS = {
    "vocab and tokens": lambda mesh: VocabSharding(mesh, "vocab", "data"),
    "vocab over all": lambda mesh: VocabSharding(mesh, ("data", "vocab")),
    "vocab only": lambda mesh: VocabSharding(mesh, "vocab"),
    "tokens only": lambda mesh: VocabSharding(mesh, None, "data"),
}


def normal(seed, *shape, dtype=jnp.float32):
    """Of NumPy, which compiles nothing, here or where the array is split."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@cache
def problem(dtype=jnp.float32):
    return (
        normal(0, BATCH, TIME, FEATURES, dtype=dtype),
        normal(1, VOCAB, FEATURES, dtype=dtype),
        normal(2, VOCAB, dtype=dtype),
        np.random.default_rng(3).integers(0, VOCAB, (BATCH, TIME)).astype(np.int32),
    )


def place(sharding, hidden, weight, bias, labels):
    tokens = NamedSharding(sharding.mesh, sharding.token_spec)
    table = NamedSharding(sharding.mesh, sharding.table_spec)
    return jax.device_put((hidden, weight, bias, labels), (tokens, table, table, tokens))


def close(got, wanted, dtype=jnp.float32):
    """Sums over features and classes in another order, each of them rounded."""
    tolerance = 8 * float(jnp.finfo(dtype).eps) * FEATURES**0.5
    assert_near(got, wanted, tolerance, 1e-3)


def other(kind):
    return AxisType.Explicit if kind is AxisType.Auto else AxisType.Auto


def assert_traces(function, arrays, wanted):
    """By another kind of axes: what it refuses it refuses when traced."""
    found = jax.eval_shape(function, *arrays)
    shapes = [
        [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)] for each in (found, wanted)
    ]
    assert shapes[0] == shapes[1]
