"""The first parameters of models, and arrays of one number, by NumPy.

JAX compiles a draw, and ``jnp.zeros``, for each of their shapes.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax._src import core
from jax._src.lax import lax
from jax._src.nn import initializers


def _uniform(draw, shape, dtype, low=0.0, high=1.0):
    return draw.uniform(low, high, shape)


def _normal(draw, shape, dtype):
    return draw.normal(size=shape)


def _scaled_normal(draw, shape, dtype, scale):
    return draw.normal(size=shape) * np.asarray(scale)


def _truncated_normal(draw, low, high, shape, dtype):
    drawn = draw.normal(size=shape)
    while (outside := (drawn < low) | (drawn > high)).any():
        drawn[outside] = draw.normal(size=outside.sum())
    return drawn


def _orthogonal(draw, rows, shape, dtype, columns):
    tall = draw.normal(size=(*shape, max(rows, columns), min(rows, columns)))
    columns_of, triangle = np.linalg.qr(tall)
    columns_of *= np.sign(np.diagonal(triangle, axis1=-2, axis2=-1))[..., None, :]
    return columns_of if rows >= columns else columns_of.swapaxes(-1, -2)


class _Unscaled(NamedTuple):
    """What an initializer draws only to scale it, which would be a program for each shape."""

    numbers: np.ndarray

    def __mul__(self, scale):
        if isinstance(scale, jax.core.Tracer):
            return self.numbers * scale
        return jax.device_put(self.numbers * np.asarray(scale, self.numbers.dtype))


def _by_numpy(theirs, ours, dtype_at, unscaled=False):
    """``ours(draw, *args)`` for ``theirs(key, *args)``, unless the key is traced."""

    def drawn(key, *args, **options):
        if isinstance(key, jax.core.Tracer):
            return theirs(key, *args, **options)
        draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        # A narrow draw is the wide one, rounded.
        dtype = jax.dtypes.canonicalize_dtype(args[dtype_at])
        numbers = ours(draw, *args).astype(np.float32).astype(dtype)
        return _Unscaled(numbers) if unscaled else jax.device_put(numbers)

    return drawn


class Draws:
    """``jax.random`` as the initializers see it."""

    uniform = staticmethod(_by_numpy(jax.random.uniform, _uniform, 1, True))
    normal = staticmethod(_by_numpy(jax.random.normal, _normal, 1))
    truncated_normal = staticmethod(
        _by_numpy(jax.random.truncated_normal, _truncated_normal, 3, True)
    )
    orthogonal = staticmethod(_by_numpy(jax.random.orthogonal, _orthogonal, 2))

    def __getattr__(self, name):
        return getattr(jax.random, name)


def _full_by_numpy(theirs):
    """Of ``jnp.zeros``, ``ones``, ``full`` and their likes, where nothing is traced."""

    def full(shape, fill_value, dtype=None, *, sharding=None):
        own = getattr(fill_value, "dtype", None) if dtype is None else dtype
        simple = (
            core.trace_state_clean()
            and sharding is None
            and own is not None
            and not jax.dtypes.issubdtype(own, jax.dtypes.extended)
            and not isinstance(fill_value, jax.core.Tracer)
            and not getattr(fill_value, "weak_type", False)
        )
        if not simple:
            return theirs(shape, fill_value, dtype, sharding=sharding)
        return jax.device_put(np.full(shape, fill_value, jax.dtypes.canonicalize_dtype(own)))

    return full


def draw_by_numpy(patch):
    """Until ``patch``, a pytest.MonkeyPatch, is undone."""
    patch.setattr(lax, "full", _full_by_numpy(lax.full))
    patch.setattr(initializers, "random", Draws())
    if hasattr(initializers, "_scaled_normal"):  # of jax 0.12
        theirs = initializers._scaled_normal
        patch.setattr(initializers, "_scaled_normal", _by_numpy(theirs, _scaled_normal, 1))
