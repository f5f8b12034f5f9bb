"""A whole training step of the projection: draw, forward, backward, Adagrad on the rows touched."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.bars import bar, ratio
from benchmarks.harness import Case, Suite, compiled_case, measure
from benchmarks.limits import Limits
from jaxnets import optim
from jaxnets.kernels import (
    LogUniform,
    SparseRows,
    draw_samples,
    gather_rows,
    linear_softmax_cross_entropy,
    sampled_softmax_cross_entropy,
)

QUICK = "Steps: 3 rounds of 10; not 100,000 classes, no full softmax, no bfloat16, no sweeps."


def sampled_case(vocab_size, features, tokens, num_sampled, dtype=jnp.float32, name=None) -> Case:
    """The step with sampled softmax and row-sparse Adagrad."""
    optimizer = optim.adagrad(0.1)

    def step(tables, state, key, hidden, labels):
        key, draw = jax.random.split(key)
        samples = draw_samples(LogUniform(vocab_size), draw, num_sampled, labels)
        row_ids, rows, (own, ids) = gather_rows(tables, (labels, samples.ids))

        def loss(rows, hidden):
            return sampled_softmax_cross_entropy(
                hidden, rows["weight"], own, samples._replace(ids=ids), bias=rows["bias"]
            )

        value, (rows, hidden) = jax.value_and_grad(loss, (0, 1))(rows, hidden)
        gradient = jax.tree.map(lambda values: SparseRows(row_ids, values), rows)
        updates, state = optimizer.update(gradient, state)
        return optim.apply_updates(tables, updates), state, key, value, hidden

    tables = {
        "weight": jnp.full((vocab_size, features), 0.01, dtype),
        "bias": jnp.zeros(vocab_size, dtype),
    }
    hidden = jax.random.normal(jax.random.key(0), (tokens, features), dtype)
    labels = LogUniform(vocab_size).draw(jax.random.key(1), (tokens,))
    return compiled_case(
        name or f"sampled, {vocab_size:,} classes", step, tables, optimizer.init(tables),
        jax.random.key(2), hidden, labels, carried=3, vocab_size=vocab_size,
        num_sampled=num_sampled, tokens=tokens, features=features, dtype=jnp.dtype(dtype).name,
        # Of table and accumulator: a row is gathered from both, and read, added to and written.
        bytes=5.0 * (tokens + num_sampled) * features * jnp.dtype(dtype).itemsize,
        flops=3 * 2.0 * tokens * num_sampled * features,
    )  # fmt: skip


def full_case(vocab_size, features, tokens) -> Case:
    """The same step with the tiled full softmax and optax's Adagrad."""
    optimizer = optax.adagrad(0.1)

    def step(tables, state, hidden, labels):
        def loss(tables, hidden):
            return linear_softmax_cross_entropy(
                hidden, tables["weight"], labels, bias=tables["bias"]
            )

        value, (gradient, hidden) = jax.value_and_grad(loss, (0, 1))(tables, hidden)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(tables, updates), state, value, hidden

    tables = {"weight": jnp.full((vocab_size, features), 0.01), "bias": jnp.zeros(vocab_size)}
    hidden = jax.random.normal(jax.random.key(0), (tokens, features))
    labels = LogUniform(vocab_size).draw(jax.random.key(1), (tokens,))
    return compiled_case(
        f"full (tiled), {vocab_size:,} classes", step, tables, optimizer.init(tables), hidden,
        labels, carried=2, flops=3 * 2.0 * tokens * vocab_size * features,
    )  # fmt: skip


def _tensorflow_case(vocab_size, features, tokens, num_sampled) -> Case:
    import tensorflow as tf

    weight = tf.Variable(tf.fill((vocab_size, features), 0.01))
    bias = tf.Variable(tf.zeros(vocab_size))
    hidden = tf.constant(np.random.default_rng(0).normal(size=(tokens, features)), tf.float32)
    labels = np.array(LogUniform(vocab_size).draw(jax.random.key(1), (tokens, 1)), np.int64)
    optimizer = tf.keras.optimizers.Adagrad(0.1)
    optimizer.build([weight, bias])

    @tf.function
    def step(hidden, labels):
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            loss = tf.reduce_mean(
                tf.nn.sampled_softmax_loss(weight, bias, labels, hidden, num_sampled, vocab_size)
            )
        gradients = tape.gradient(loss, [weight, bias, hidden])
        optimizer.apply_gradients(zip(gradients[:2], [weight, bias], strict=True))
        return loss, gradients[2]

    return Case(
        f"TensorFlow sampled_softmax_loss + Keras Adagrad, {vocab_size:,} classes",
        lambda: step(hidden, labels)[0].numpy(),
    )


def run(limits: Limits, suite: Suite, peers: dict[str, bool]) -> tuple[list[dict], list[dict]]:
    """The rows and the bars."""
    quick = suite == "quick"
    vocabularies = (10_000, 1_000_000) if quick else (10_000, 100_000, 1_000_000)
    cases = [sampled_case(vocab_size, 128, 1024, 1024) for vocab_size in vocabularies]
    if peers["tensorflow"]:
        cases.append(_tensorflow_case(1_000_000, 128, 1024, 1024))
    rows = measure("step, 1024x128, 1,024 samples", cases, 3 if quick else 10, limits)
    by_name = {row["name"]: row for row in rows}
    million = by_name["sampled, 1,000,000 classes"]
    tensorflow = [ratio(by_name[cases[-1].name], million)] if peers["tensorflow"] else []
    bars = [
        bar(
            "step at 1,000,000 / step at 10,000 classes",
            ratio(million, by_name["sampled, 10,000 classes"]),
            at_most=1.5,
        ),
        bar("TensorFlow / ours, 1,000,000 classes", *tensorflow, at_least=10),
    ]
    del cases
    if quick:
        return rows, bars

    pair = [sampled_case(262_144, 512, 1024, 1024), full_case(262_144, 512, 1024)]
    pair_rows = measure("step, 1024x512, 262,144 classes", pair, 5, limits)
    bars.append(
        bar(
            "full (tiled) / sampled step, 262,144 classes",
            ratio(pair_rows[1], pair_rows[0]),
            at_least=150,
        )
    )
    rows += pair_rows
    del pair

    narrow = [
        sampled_case(n, 128, 1024, 1024, jnp.bfloat16, f"bfloat16, {n:,} classes")
        for n in (10_000, 1_000_000)
    ]
    narrow_rows = measure("step in bfloat16, 1024x128, 1,024 samples", narrow, 10, limits)
    bars.append(
        bar(
            "step in bfloat16 at 1,000,000 / at 10,000 classes",
            ratio(narrow_rows[1], narrow_rows[0]),
            at_most=1.5,
        )
    )
    rows += narrow_rows
    del narrow

    rows += measure(
        "step by num_sampled, 1,000,000 classes, 1024x128",
        [sampled_case(1_000_000, 128, 1024, n, name=f"{n:,} samples") for n in (64, 512, 4096)],
        10,
        limits,
    )
    rows += measure(
        "step by tokens, 100,000 classes, 512 samples",
        [sampled_case(100_000, 128, n, 512, name=f"{n:,} tokens") for n in (256, 1024, 4096)],
        10, limits,
    )  # fmt: skip
    if suite == "full":
        rows += measure(
            "step by features, 100,000 classes, 512 samples",
            [sampled_case(100_000, n, 1024, 512, name=f"{n} features") for n in (64, 256, 1024)],
            10,
            limits,
        )
        rows += measure(
            "step by dtype, 100,000 classes, 1,024 samples, 1024x512",
            [
                sampled_case(100_000, 512, 1024, 1024, dtype, jnp.dtype(dtype).name)
                for dtype in (jnp.float32, jnp.bfloat16)
            ],
            10,
            limits,
        )
        ten_million = [sampled_case(10_000_000, 128, 1024, 1024)]
        rows += measure("step, ten million classes", ten_million, 10, limits)
    return rows, bars
