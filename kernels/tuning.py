"""Measures implementations and tiles on the user's device, and keeps the fastest.

:func:`tune` is all there is to call; :mod:`jaxnets.kernels.dispatch` asks the cache it writes
(:mod:`jaxnets.kernels.tuning_cache`). Nothing is tuned unasked.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.kernels import dispatch, tuning_cache
from jaxnets.kernels.linear_softmax.api import linear_softmax_cross_entropy
from jaxnets.kernels.linear_softmax.tile_sizes import OTHER_TILES_OF_LOGITS
from jaxnets.kernels.pallas.contract import DEFAULT_TILES, OTHER_TILES, backend
from jaxnets.kernels.pointwise.api import pointwise_conv
from jaxnets.kernels.recurrent.api import lstm
from jaxnets.kernels.recurrent.parameters import LSTMParameters
from jaxnets.kernels.sampled_softmax.api import sampled_softmax_cross_entropy
from jaxnets.kernels.samplers.draw import draw_samples
from jaxnets.kernels.samplers.uniform import Uniform

_ROUNDS = 5


class Timing(NamedTuple):
    """One candidate: its median seconds, or why it was left out.

    Attributes:
      implementation: its name.
      tiles: its tiles; None: its own.
      seconds: the median, None where it was left out.
      left_out: why it was, or None.
    """

    implementation: str
    tiles: tuple[int, ...] | None
    seconds: float | None
    left_out: str | None


def tune(operation: str, *, dtype: Any = "float32", **sizes: Any) -> list[Timing]:
    """Times every implementation of an operation, with its tiles, and keeps the fastest.

    What is timed is a value and all its gradients, on random arrays, the candidates in turn. A
    candidate that cannot run here, fails, or differs from the default by more than rounding is
    left out.

    Args:
      operation: as of :func:`jaxnets.kernels.explain`.
      dtype: of its arrays.
      **sizes: what its choice depends on.

    Returns:
      A :class:`jaxnets.kernels.tuning.Timing` for each candidate, the fastest first; that one is in
      the cache now. Where the cache cannot be written a warning says so before anything is
      measured.

    Raises:
      ValueError: an unknown operation, wrong sizes, options it has no problem for, or a cache file
        that is not ours.
      RuntimeError: no implementation runs.

    Example:
      >>> import os, tempfile
      >>> os.environ["JAXNETS_TUNING_CACHE"] = tempfile.mkdtemp() + "/tuning.json"
      >>> timings = tune("pointwise_conv", positions=64, features=8, out=8, groups=1,
      ...                channels_first=False)
      >>> [t.implementation for t in timings if t.seconds is None]  # no GPU or TPU
      ['pallas', 'mosaic_gpu']
      >>> del os.environ["JAXNETS_TUNING_CACHE"]
    """
    found = dispatch.operation_named(operation)
    sizes = dispatch.all_sizes(found, sizes)
    if operation not in PROBLEMS:
        raise ValueError(
            f"operation must be one of {sorted(PROBLEMS)} to be tuned, got {operation!r}"
        )
    if sizes.get("extras") or sizes.get("per_token"):
        raise ValueError(f"the tuner times the plain layer only, got {sizes}")
    tuning_cache.check_writable()
    function, arrays = PROBLEMS[operation](dtype, **sizes)
    wanted = None
    timings, programs = [], []
    for implementation, tiles in candidates(found):
        obstacle = found.implementations[implementation](dispatch.target(), jnp.dtype(dtype), sizes)
        if obstacle is not None:
            timings.append(Timing(implementation, tiles, None, obstacle))
            continue
        with dispatch.with_tiles(tiles):
            program = jax.jit(value_and_gradients(partial(function, implementation)))
            try:
                results = jax.block_until_ready(program(*arrays))
            except Exception as error:  # whatever a compiler has to say
                timings.append(Timing(implementation, tiles, None, _first_line(error)))
                continue
        wanted = results if wanted is None else wanted
        if not _agree(results, wanted, 64 * float(jnp.finfo(dtype).eps)):
            timings.append(Timing(implementation, tiles, None, "its results differ"))
            continue
        programs.append((implementation, tiles, program))
    if not programs:
        reasons = "; ".join(f"{t.implementation}: {t.left_out}" for t in timings)
        raise RuntimeError(f"no implementation of {operation} runs here: {reasons}")
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(_ROUNDS):
        for (_, _, program), taken in zip(programs, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            taken.append(time.perf_counter() - start)
    measured = [
        Timing(implementation, tiles, statistics.median(taken), None)
        for (implementation, tiles, _), taken in zip(programs, seconds, strict=True)
    ]
    measured.sort(key=lambda timing: timing.seconds or math.inf)
    best = measured[0]
    fastest = tuning_cache.Measured(best.implementation, best.tiles)
    assert best.seconds is not None
    tuning_cache.keep(operation, dtype, sizes, fastest, best.seconds)
    return measured + timings


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def candidates(operation: dispatch.Operation) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Implementations, the default first and no reference, each with the tiles to try."""
    platform = dispatch.target().platform
    for implementation in operation.implementations:
        written_in = backend(implementation, platform)
        tiled = implementation in dispatch.PALLAS and operation.name != "lstm"
        if tiled and written_in in DEFAULT_TILES:
            for tiles in (DEFAULT_TILES[written_in], *OTHER_TILES[written_in]):
                yield implementation, tuple(tiles)
        elif implementation == "tiled" and platform != "cpu":
            yield from ((implementation, tiles) for tiles in (None, *OTHER_TILES_OF_LOGITS))
        elif implementation != "reference":
            yield implementation, None


def value_and_gradients(function: Callable) -> Callable:
    """The function's value and the gradients of all its arrays, for a cotangent of ones."""

    def both(*arrays):
        value, backward = jax.vjp(function, *arrays)
        return value, backward(jax.tree.map(jnp.ones_like, value))

    return both


@jax.jit
def _agree(results: Any, wanted: Any, tolerance: Any) -> jax.Array:
    """Equal up to the rounding of long sums, by norm."""

    def norm(array):
        return jnp.linalg.norm(array.astype(jnp.float32).reshape(-1))

    pairs = zip(jax.tree.leaves(results), jax.tree.leaves(wanted), strict=True)
    return jnp.array([norm(a - b) <= tolerance * norm(b) + 1e-30 for a, b in pairs]).all()


def _normal(number: int, dtype: Any, *shape: int, scale: float = 1.0) -> jax.Array:
    return (scale * jax.random.normal(jax.random.key(number), shape)).astype(dtype)


def labels_of(tokens: int, vocab_size: int) -> jax.Array:
    """The labels of the softmaxes' problems."""
    return jax.random.randint(jax.random.key(3), (tokens,), 0, vocab_size)


def _full(dtype: Any, tokens: int, features: int, vocab_size: int) -> tuple[Callable, tuple]:
    labels = labels_of(tokens, vocab_size)

    def function(implementation, hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, implementation=implementation
        )

    weight = _normal(1, dtype, vocab_size, features, scale=features**-0.5)
    return function, (_normal(0, dtype, tokens, features), weight, _normal(2, dtype, vocab_size))


def _sampled(
    dtype: Any, tokens: int, features: int, num_sampled: int, per_token: bool
) -> tuple[Callable, tuple]:
    vocab_size = 4 * num_sampled  # the choice does not depend on it: only rows are read
    labels = labels_of(tokens, vocab_size)
    samples = draw_samples(Uniform(vocab_size), jax.random.key(4), num_sampled, labels)

    def function(implementation, hidden, weight, bias):
        return sampled_softmax_cross_entropy(
            hidden, weight, labels, samples, bias=bias, implementation=implementation
        )

    weight = _normal(1, dtype, vocab_size, features, scale=features**-0.5)
    return function, (_normal(0, dtype, tokens, features), weight, _normal(2, dtype, vocab_size))


def _pointwise(
    dtype: Any, positions: int, features: int, out: int, groups: int, channels_first: bool
) -> tuple[Callable, tuple]:
    def function(implementation, inputs, kernel, bias):
        return pointwise_conv(
            inputs, kernel, bias, activation="relu", groups=groups, channels_first=channels_first,
            implementation=implementation,
        )  # fmt: skip

    shape = (1, features, positions) if channels_first else (1, positions, features)
    kernel = _normal(1, dtype, features // groups, out, scale=features**-0.5)
    return function, (_normal(0, dtype, *shape), kernel, _normal(2, dtype, out))


def _lstm(
    dtype: Any, batch: int, time: int, features: int, hidden: int, extras: Any
) -> tuple[Callable, tuple]:
    def function(implementation, inputs, *parameters):
        return lstm(inputs, None, LSTMParameters(*parameters), implementation=implementation)[0]

    return function, (
        _normal(0, dtype, batch, time, features),
        _normal(1, dtype, features, 4 * hidden, scale=features**-0.5),
        _normal(2, dtype, hidden, 4 * hidden, scale=hidden**-0.5),
        _normal(3, dtype, 4 * hidden),
    )


# ``(dtype, **sizes) -> function(implementation, *arrays), arrays`` for each operation.
PROBLEMS: dict[str, Callable] = {
    "linear_softmax_cross_entropy": _full,
    "lstm": _lstm,
    "pointwise_conv": _pointwise,
    "sampled_softmax_cross_entropy": _sampled,
}
