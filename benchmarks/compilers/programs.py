"""What is compiled: each operation by each of its implementations, beside what one writes today."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks import pointwise
from jaxnets import optim
from jaxnets.kernels import (
    LogUniform,
    LSTMParameters,
    SparseRows,
    dispatch,
    draw_samples,
    gather_rows,
    linear_softmax_cross_entropy,
    lstm,
    pointwise_conv,
    sampled_softmax_cross_entropy,
)

NAIVE, DEFAULT = "naive", "ours, default"
Shape = jax.ShapeDtypeStruct


class Program(NamedTuple):
    """A function and the shapes that it is compiled for.

    Attributes:
      operation: the group that it is compared in, with its shape.
      shape: its sizes and dtype, in words.
      name: ``DEFAULT``, ``NAIVE`` with what that is, or an implementation.
      function: picklable: a module's function, or a ``functools.partial`` of one.
      arguments: a tuple of trees of ``jax.ShapeDtypeStruct``, or a function that makes it.
      dtype: that its matmuls are in.
      flops: of the matmuls, by their formula.
      moved: the least bytes: each operand read once, each result written once.
      donated: how many of the first arguments a step overwrites.
    """

    operation: str
    shape: str
    name: str
    function: Callable
    arguments: tuple | Callable
    dtype: str
    flops: float
    moved: float
    donated: int = 0


def programs(*, quick: bool = False) -> Iterator[Program]:
    """All of them; with ``quick`` a shape an operation, by default and naive only."""
    exact_shapes = (
        ((8192, 4096, 131_072),) if quick else ((8192, 4096, 131_072), (2048, 1024, 50_257))
    )
    for sizes in exact_shapes:
        yield from _exact("bfloat16", *sizes, quick=quick)
    lstm_shapes = [("bfloat16", (16, 1024, 512, 512))]
    if not quick:
        lstm_shapes += [
            ("float32", (16, 1024, 512, 512)), ("bfloat16", (64, 512, 1024, 1024)),
            ("bfloat16", (32, 128, 256, 256)),
        ]  # fmt: skip
    for dtype, shape in lstm_shapes:
        yield from _lstm(dtype, *shape, quick=quick)
    for image, out in pointwise.SHAPES[:1] if quick else pointwise.SHAPES:
        yield from _pointwise("float32", image, out, quick=quick)
    sampled = [("float32", 1_000_000, 1024)]
    if not quick:
        sampled += [
            ("float32", 10_000, 1024), ("bfloat16", 1_000_000, 8192),
        ]  # fmt: skip
    for dtype, vocab, num_sampled in sampled:
        yield from _sampled(dtype, 1024, 512, vocab, num_sampled, quick=quick)


def _ours(operation: str, *, quick: bool) -> dict[str, str | None]:
    """The names of our programs, and the implementation that each asks for."""
    found = dispatch.operation_named(operation).implementations
    named = {} if quick else {f"ours, {name}": name for name in found if name != "reference"}
    return {DEFAULT: None, **named}


def _bytes(*trees: Any) -> float:
    leaves = jax.tree.leaves(trees)
    return float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves))


# The exact loss: value and gradients of hidden [tokens, features] and weight [vocab, features].


def exact_loss(implementation: Any, hidden, weight, labels):
    """Ours."""
    return linear_softmax_cross_entropy(
        hidden, weight, bias=None, labels=labels, implementation=implementation
    )


def whole_logits(hidden, weight, labels):
    """All logits, then optax in float32."""
    logits = (hidden @ weight.T).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def three_matmuls(hidden, weight, logits):
    """Those that value and gradients cannot do without."""
    return hidden @ weight.T, logits @ weight, logits.T @ hidden


def value_and_gradients(loss: Callable, *arrays):
    """Of the first two arrays."""
    return jax.value_and_grad(loss, (0, 1))(*arrays)


def _exact(dtype: str, tokens: int, features: int, vocab: int, *, quick: bool) -> Iterator[Program]:
    hidden, weight = Shape((tokens, features), dtype), Shape((vocab, features), dtype)
    labels = Shape((tokens,), "int32")
    make = partial(
        Program, "exact loss", f"{tokens} x {features}, {vocab:,} classes, {dtype}", dtype=dtype,
        flops=3 * 2.0 * tokens * features * vocab, moved=2 * _bytes(hidden, weight),
    )  # fmt: skip
    for name, implementation in _ours("linear_softmax_cross_entropy", quick=quick).items():
        loss = partial(exact_loss, implementation)
        yield make(name, partial(value_and_gradients, loss), (hidden, weight, labels))
    yield make(
        f"{NAIVE}: whole logits", partial(value_and_gradients, whole_logits),
        (hidden, weight, labels),
    )  # fmt: skip
    yield make("the three matmuls", three_matmuls, (hidden, weight, Shape((tokens, vocab), dtype)))


# The LSTM: outputs [batch, time, hidden] and the gradients of inputs and parameters.


def lstm_outputs(implementation: Any, inputs, parameters):
    """Ours."""
    return lstm(inputs, None, LSTMParameters(*parameters), implementation=implementation)[0]


def flax_lstm(features: int, hidden: int, inputs, parameters):
    """``nnx.RNN(nnx.OptimizedLSTMCell)``, its parameters a dict of arrays."""
    graph, state, rest = _flax_parts(features, hidden, inputs.dtype)
    nnx.replace_by_pure_dict(state, parameters)
    zeros = jnp.zeros((inputs.shape[0], hidden), inputs.dtype)
    return nnx.merge(graph, state, rest)(inputs, initial_carry=(zeros, zeros))


def _flax_parts(features: int, hidden: int, dtype: Any) -> Any:
    def make():
        return nnx.RNN(nnx.OptimizedLSTMCell(features, hidden, dtype=dtype, rngs=nnx.Rngs(0)))

    return nnx.split(nnx.eval_shape(make), nnx.Param, ...)


def outputs_and_gradients(layer: Callable, inputs, parameters, d_outputs):
    """Outputs, and the gradients of inputs and parameters."""
    outputs, backward = jax.vjp(layer, inputs, parameters)
    return outputs, backward(d_outputs)


def _lstm(
    dtype: str, batch: int, time: int, features: int, hidden: int, *, quick: bool
) -> Iterator[Program]:
    inputs, outputs = (Shape((batch, time, size), dtype) for size in (features, hidden))
    shapes = (features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)
    parameters = tuple(Shape(shape, dtype) for shape in shapes)
    make = partial(
        Program, "LSTM with gradient", f"{(batch, time, features, hidden)}, {dtype}", dtype=dtype,
        flops=3 * 2.0 * batch * time * (features + hidden) * 4 * hidden,
        moved=2 * _bytes(inputs, outputs, parameters),
    )  # fmt: skip
    for name, implementation in _ours("lstm", quick=quick).items():
        layer = partial(lstm_outputs, implementation)
        yield make(name, partial(outputs_and_gradients, layer), (inputs, parameters, outputs))
    flax_parameters = jax.tree.map(
        lambda leaf: Shape(leaf.shape, dtype),
        nnx.to_pure_dict(_flax_parts(features, hidden, dtype)[1]),
    )
    yield make(
        f"{NAIVE}: flax nnx.RNN",
        partial(outputs_and_gradients, partial(flax_lstm, features, hidden)),
        (inputs, flax_parameters, outputs),
    )


# The 1x1 convolution: outputs, and gradients whose cotangent they are.


def pointwise_outputs(implementation: Any, inputs, kernel, bias):
    """Ours."""
    return pointwise_conv(inputs, kernel, bias, implementation=implementation)


def layer_and_gradients(layer: Callable, *arrays):
    """Outputs, and the gradients of half their sum of squares."""
    outputs, backward = jax.vjp(layer, *arrays)
    return outputs, backward(outputs)


def _pointwise(dtype: str, image: tuple[int, ...], out: int, *, quick: bool) -> Iterator[Program]:
    shapes = image, (image[-1], out), (out,)
    arguments = tuple(Shape(shape, dtype) for shape in shapes)
    flops, _ = pointwise.flops_and_bytes(image, out, gradient=True)
    results = Shape((*image[:-1], out), dtype)
    make = partial(
        Program, "1x1 convolution with gradient", f"{list(image)} to {out}, {dtype}",
        dtype=dtype, flops=flops, moved=2 * _bytes(arguments) + _bytes(results),
    )  # fmt: skip
    for name, implementation in _ours("pointwise_conv", quick=quick).items():
        layer = partial(pointwise_outputs, implementation)
        yield make(name, partial(layer_and_gradients, layer), arguments)
    flax = partial(layer_and_gradients, pointwise.flax_conv)
    yield make(f"{NAIVE}: flax nnx.Conv", flax, arguments)


# A training step of a sampled softmax: draw, value, gradients, Adagrad.


def sampled_step(implementation: Any, num_sampled: int, tables, state, seed, hidden, labels):
    """Ours: gradients and updates of the rows that were touched."""
    vocab = tables["weight"].shape[0]
    samples = draw_samples(LogUniform(vocab), jax.random.key(seed), num_sampled, labels)
    row_ids, rows, (own, ids) = gather_rows(tables, (labels, samples.ids))

    def loss(rows, hidden):
        return sampled_softmax_cross_entropy(
            hidden, rows["weight"], bias=rows["bias"], labels=own,
            samples=samples._replace(ids=ids), implementation=implementation,
        )  # fmt: skip

    value, (rows, hidden) = jax.value_and_grad(loss, (0, 1))(rows, hidden)
    gradient = jax.tree.map(lambda values: SparseRows(row_ids, values), rows)
    updates, state = optim.adagrad(0.1).update(gradient, state)
    return optim.apply_updates(tables, updates), state, value, hidden


def dense_step(num_sampled: int, tables, state, seed, hidden, labels):
    """The same by JAX's own gradient, which is as large as the tables, and optax."""
    vocab = tables["weight"].shape[0]
    uniform = jax.random.uniform(jax.random.key(seed), (num_sampled,))
    ids = jnp.minimum(jnp.exp(uniform * math.log(vocab + 1)).astype(jnp.int32), vocab) - 1

    def log_expected(ids):
        share = jnp.log1p(1 / (ids + 1.0)) / math.log(vocab + 1)
        return jnp.log(num_sampled * share)

    def loss(tables, hidden):
        weight, bias = tables["weight"], tables["bias"]
        true = (hidden * weight[labels]).sum(-1) + bias[labels] - log_expected(labels)
        sampled = hidden @ weight[ids].T + bias[ids] - log_expected(ids)
        sampled = jnp.where(ids == labels[:, None], -jnp.inf, sampled)
        logits = jnp.concatenate([true[:, None], sampled], 1)
        return (jax.nn.logsumexp(logits, 1) - true).mean()

    value, (gradient, hidden) = jax.value_and_grad(loss, (0, 1))(tables, hidden)
    updates, state = optax.adagrad(0.1).update(gradient, state)
    return optax.apply_updates(tables, updates), state, value, hidden


def _sampled(
    dtype: str, tokens: int, features: int, vocab: int, num_sampled: int, *, quick: bool
) -> Iterator[Program]:
    tables = {"weight": Shape((vocab, features), dtype), "bias": Shape((vocab,), dtype)}
    rest = (Shape((), "int32"), Shape((tokens, features), dtype), Shape((tokens,), "int32"))
    rows = Shape((tokens + num_sampled, features), dtype)
    make = partial(
        Program, "sampled step",
        f"{tokens} x {features}, {num_sampled} samples of {vocab:,} classes, {dtype}", dtype=dtype,
        flops=3 * 2.0 * tokens * num_sampled * features,
        moved=4 * _bytes(rows) + 2 * _bytes(rest[1]),  # rows of table and accumulator, in and out
        donated=2,
    )  # fmt: skip
    state = jax.eval_shape(optim.adagrad(0.1).init, tables)
    for name, implementation in _ours("sampled_softmax_cross_entropy", quick=quick).items():
        step = partial(sampled_step, implementation, num_sampled)
        yield make(name, step, (tables, state, *rest))
    dense_state = jax.eval_shape(optax.adagrad(0.1).init, tables)
    step = partial(dense_step, num_sampled)
    yield make(f"{NAIVE}: dense gradient", step, (tables, dense_state, *rest))
