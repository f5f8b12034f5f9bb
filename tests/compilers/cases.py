"""What the compilers' process is asked to compile: functions of a module, so that it finds them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu
from jax.sharding import SingleDeviceSharding

from benchmarks.compilers.compile import topology
from benchmarks.compilers.programs import lstm_outputs, pointwise_outputs
from jaxnets import optim
from jaxnets.kernels import (
    LogUniform,
    Samples,
    SparseRows,
    draw_samples,
    gather_rows,
    linear_softmax_cross_entropy,
    pointwise_conv,
    sampled_softmax_cross_entropy,
)
from tests.support import matrix
from tests.support.experiments import scalar


def matmul(a, b):
    return a @ b


def scanned_matmuls(times, a, b):
    """``times`` matmuls, each of the one before."""
    return lax.scan(lambda c, _: ((c @ b).astype(c.dtype), None), a, None, length=times)[0]


def nested_matmuls(outer, inner, a, b):
    return lax.fori_loop(0, outer, lambda _, c: scanned_matmuls(inner, c, b), a)


def pallas_matmul(tile, a, b):
    """The textbook's, for TPU: a grid over tiles, the depth innermost."""

    def kernel(a_ref, b_ref, out_ref, total):
        @pl.when(pl.program_id(2) == 0)
        def _():
            total[...] = jnp.zeros_like(total)

        total[...] += jnp.dot(a_ref[...], b_ref[...], preferred_element_type=jnp.float32)

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _():
            out_ref[...] = total[...].astype(out_ref.dtype)

    (rows, depth), columns = a.shape, b.shape[1]
    return pl.pallas_call(
        kernel,
        name="textbook_matmul",
        grid=(rows // tile, columns // tile, depth // tile),
        in_specs=[
            pl.BlockSpec((tile, tile), lambda i, j, k: (i, k)),
            pl.BlockSpec((tile, tile), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((tile, tile), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((rows, columns), a.dtype),
        scratch_shapes=[tpu.VMEM((tile, tile), jnp.float32)],
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
    )(a, b)


def pallas_in_a_loop(times, tile, a, b):
    return lax.scan(lambda c, _: (pallas_matmul(tile, c, b), None), a, None, length=times)[0]


def subject(name, *arrays):
    """A function of the table of what works with what, with its gradient if it has one."""
    found = matrix.SUBJECTS[name]
    if not found.differentiable:
        return found.function(*arrays)
    return jax.value_and_grad(
        lambda *arrays: scalar(found.function(*arrays)), tuple(range(len(arrays)))
    )(*arrays)


def all_of(functions, arrays):
    """Functions of arrays, both by name, in one program."""
    return {name: function(*arrays[name]) for name, function in functions.items()}


def ends_its_process(_):
    os._exit(1)


# Odd and tiny shapes: value and gradients of the float arrays, of a loss or of an operation's sum.


def _gradients(loss, *arrays):
    return jax.value_and_grad(loss, tuple(range(len(arrays))))(*arrays)


def exact(implementation, options, labels, *arrays):
    def loss(hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, bias=bias, labels=labels, implementation=implementation, **options
        )

    return _gradients(loss, *arrays)


def sampled(implementation, labels, ids, *arrays):
    def loss(hidden, weight, bias):
        samples = Samples.from_candidates(ids, labels)
        return sampled_softmax_cross_entropy(
            hidden, weight, bias=bias, labels=labels, samples=samples, implementation=implementation
        )

    return _gradients(loss, *arrays)


def drawn(vocab, count, seed, labels):
    return draw_samples(LogUniform(vocab), jax.random.key(seed), count, labels)


def summed(function, *arrays):
    return _gradients(lambda *arrays: function(*arrays).astype(jnp.float32).sum(), *arrays)


def of_lstm(implementation, inputs, *parameters):
    return lstm_outputs(implementation, inputs, parameters)


class Odd(NamedTuple):
    """A function of integers, shapes ``ids``, and of floats, shapes ``floats``."""

    function: Callable
    ids: tuple[tuple[int, ...], ...]
    floats: tuple[tuple[int, ...], ...]

    def arguments(self, dtype):
        ids = (jax.ShapeDtypeStruct(shape, "int32") for shape in self.ids)
        return (*ids, *(jax.ShapeDtypeStruct(shape, dtype) for shape in self.floats))


def _exact(implementation, tokens, features, vocab, **options):
    shapes = (tokens, features), (vocab, features), (vocab,)
    return Odd(partial(exact, implementation, options), ((tokens,),), shapes)


def _sampled(implementation, tokens, features, vocab, count):
    shapes = (tokens, features), (vocab, features), (vocab,)
    return Odd(partial(sampled, implementation), ((tokens,), (count,)), shapes)


def _lstm(implementation, batch, time, features, hidden):
    shapes = (batch, time, features), (features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)
    return Odd(partial(summed, partial(of_lstm, implementation)), (), shapes)


def _pointwise(implementation, positions, features, out):
    shapes = (1, positions, features), (features, out), (out,)
    return Odd(partial(summed, partial(pointwise_outputs, implementation)), (), shapes)


def _with_residual(activation, inputs, kernel, bias, residual):
    return pointwise_conv(
        inputs, kernel, bias, residual=residual, activation=activation, implementation="mosaic_gpu"
    )


def _activated(activation):
    shapes = (1, 7, 300), (300, 130), (130,), (1, 7, 130)
    return Odd(partial(summed, partial(_with_residual, activation)), (), shapes)


CAPPED = "exact loss, 1 x 8, 10 classes, capped and smoothed, pallas"
ODD = {
    "exact loss, 1 x 8, 10 classes, tiled": _exact("tiled", 1, 8, 10),
    "exact loss, 1 x 8, 10 classes, pallas": _exact("pallas", 1, 8, 10),
    CAPPED: _exact("pallas", 1, 8, 10, soft_cap=5.0, label_smoothing=0.1),
    "exact loss, 1 x 8, 10 classes, capped and smoothed, mosaic_gpu": _exact(
        "mosaic_gpu", 1, 8, 10, soft_cap=5.0, label_smoothing=0.1
    ),
    "exact loss, 7 x 300, 50257 classes, pallas": _exact("pallas", 7, 300, 50_257),
    "exact loss, 7 x 300, 50257 classes, mosaic_gpu": _exact("mosaic_gpu", 7, 300, 50_257),
    "exact loss, 130 x 64, 151936 classes, pallas": _exact("pallas", 130, 64, 151_936),
    "sampled loss, 1 x 8, 10 classes, gathered": _sampled("gathered", 1, 8, 10, 3),
    "sampled loss, 1 x 8, 10 classes, pallas": _sampled("pallas", 1, 8, 10, 3),
    "sampled loss, 7 x 300, 50257 classes, pallas": _sampled("pallas", 7, 300, 50_257, 129),
    "sampled loss, 7 x 300, 50257 classes, mosaic_gpu": _sampled("mosaic_gpu", 7, 300, 50_257, 129),
    **{f"lstm, hidden {n}, pallas": _lstm("pallas", 3, 5, 4, n) for n in (1, 7, 300, 1024)},
    **{f"lstm, hidden {n}, scan": _lstm("scan", 3, 5, 4, n) for n in (1, 300)},
    "1x1 convolution, 1 x 1 to 1, matmul": _pointwise("matmul", 1, 1, 1),
    "1x1 convolution, 1 x 1 to 1, pallas": _pointwise("pallas", 1, 1, 1),
    "1x1 convolution, 7 x 300 to 130, pallas": _pointwise("pallas", 7, 300, 130),
    **{
        f"1x1 convolution, 7 x 300 to 130, {activation}, mosaic_gpu": _activated(activation)
        for activation in ("relu", "sigmoid", "tanh", "silu", "gelu", "gelu_exact")
    },
}
DTYPES = ("float32", "bfloat16", "float16")
LARGE_LSTMS = "lstm, hidden 300, pallas", "lstm, hidden 1024, pallas"
# What differs from another on Mosaic GPU in its sizes or its activation only.
MORE_ON_MOSAIC_GPU = (
    "exact loss, 7 x 300, 50257 classes, mosaic_gpu",
    *(f"{name}, mosaic_gpu" for name in ("relu", "sigmoid", "tanh", "silu", "gelu")),
)


# A table in the memory of a device's host, a million rows of it, and the step of row-wise Adagrad.
_ADAGRAD = optim.rowwise_adagrad(0.1)


def offloaded_rows(table, ids):
    row_ids, rows, local_ids = gather_rows({"weight": table}, ids, offloaded=True)
    return row_ids, rows["weight"][local_ids]


def offloaded_move(tables, state, row_ids, values):
    return optim.offloaded_update(_ADAGRAD, SparseRows(row_ids, values), state, tables)


def offloaded_shapes(device, moves):
    """Of the functions above; the arguments of ``offloaded_move`` if it ``moves``."""
    host, own = (
        SingleDeviceSharding(topology(device).devices[0], memory_kind=kind)
        for kind in ("pinned_host", "device")
    )

    def on(sharding, shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    table, ids = on(host, (1_000_000, 128)), on(own, (1024,), jnp.int32)
    if not moves:
        return table, ids
    step, sums = on(own, (), jnp.int32), [{"sum": on(host, (1_000_000,))}]
    state = jax.eval_shape(_ADAGRAD.init, table)._replace(step=step, tables=sums)
    return table, state, ids, on(own, (1024, 128))
