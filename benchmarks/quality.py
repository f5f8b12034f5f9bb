"""Quality against time: a next-word model on real text, trained with each loss for equal seconds.

Embedding, one LSTM and an output projection over every word type of the corpus. The model, the
data, the seeds and the optimizers (Adagrad for the tables, Adam for the LSTM) are the same for all;
only the loss of the projection differs. The clock counts training only, compiled; validation
perplexity is exact for all.
"""

from __future__ import annotations

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import corpus
from benchmarks.exact import naive_loss, ours
from benchmarks.harness import Suite, normal, progress
from jaxnets import optim
from jaxnets.kernels import (
    LearnedUnigram,
    LogUniform,
    SparseRows,
    Uniform,
    Unigram,
    draw_samples,
    gather_rows,
    in_batch_samples,
    linear_softmax_cross_entropy,
    sampled_softmax_cross_entropy,
)

BATCH, TIME, EMBEDDED, HIDDEN = 32, 32, 128, 256
SECONDS: dict[Suite, float] = {"quick": 3.0, "standard": 16.0, "full": 90.0}
QUICK_METHODS = ("full, tiled", "log-uniform, 512")
QUICK = "Quality: 2 losses of 9, and 3 s of training for each: perplexities tell little."


def lstm(parameters, inputs):
    """A plain scan: ``inputs [batch, time, features]`` to hidden states [batch, time, hidden]."""
    projected = inputs @ parameters["input"] + parameters["bias"]

    def step(carry, x):
        cell, hidden = carry
        i, f, g, o = jnp.split(x + hidden @ parameters["hidden"], 4, axis=1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (cell, hidden), hidden

    zeros = jnp.zeros((inputs.shape[0], HIDDEN))
    _, hidden = jax.lax.scan(step, (zeros, zeros), projected.swapaxes(0, 1))
    return hidden.swapaxes(0, 1)


def initial(vocab_size: int):
    """The tables and the LSTM's parameters."""
    bias = jnp.zeros(4 * HIDDEN).at[HIDDEN : 2 * HIDDEN].set(1.0)  # forget bias
    dense = {
        "input": normal(0, EMBEDDED, 4 * HIDDEN) * EMBEDDED**-0.5,
        "hidden": normal(1, HIDDEN, 4 * HIDDEN) * HIDDEN**-0.5,
        "bias": bias,
    }
    embedding = normal(2, vocab_size, EMBEDDED) * 0.1
    projection = {
        "weight": normal(3, vocab_size, HIDDEN) * 0.05,
        "bias": jnp.zeros(vocab_size),
    }
    return embedding, projection, dense


TABLES, LSTM = optim.adagrad(0.1), optax.adam(2e-3)
DENSE_TABLE = optax.adagrad(0.1)  # what TABLES does, for a dense gradient


def _update_rest(embedding, states, row_ids, embedded, dense, gradients):
    """Embedding rows and LSTM: the same for every method."""
    updates, states["embedding"] = TABLES.update(
        SparseRows(row_ids, gradients["embedded"]), states["embedding"]
    )
    embedding = optim.apply_updates(embedding, updates)
    updates, states["dense"] = LSTM.update(gradients["dense"], states["dense"])
    return embedding, optax.apply_updates(dense, updates)


def full_step(loss, parameters, states, sampler, key, tokens):
    """A step with a full softmax: the projection's gradient is dense."""
    embedding, projection, dense = parameters
    states = dict(states)
    row_ids, embedded, ids = gather_rows(embedding, tokens[:, :-1])

    def objective(trained):
        hidden = lstm(trained["dense"], trained["embedded"][ids]).reshape(-1, HIDDEN)
        weights = trained["projection"]
        return loss(hidden, weights["weight"], weights["bias"], tokens[:, 1:].reshape(-1))

    trained = {"dense": dense, "embedded": embedded, "projection": projection}
    gradients = jax.grad(objective)(trained)
    updates, states["projection"] = DENSE_TABLE.update(
        gradients["projection"], states["projection"]
    )
    projection = optax.apply_updates(projection, updates)
    embedding, dense = _update_rest(embedding, states, row_ids, embedded, dense, gradients)
    return (embedding, projection, dense), states, sampler, key


def sampled_step(num_sampled, log_p, parameters, states, sampler, key, tokens):
    """A step with sampled softmax: both tables' gradients are rows. ``sampler`` None: in-batch."""
    embedding, projection, dense = parameters
    states = dict(states)
    labels = tokens[:, 1:].reshape(-1)
    key, draw = jax.random.split(key)
    if sampler is None:
        samples = in_batch_samples(labels, log_p[labels])
    else:
        samples = draw_samples(sampler, draw, num_sampled, labels)
    row_ids, embedded, ids = gather_rows(embedding, tokens[:, :-1])
    class_ids, rows, (own, candidates) = gather_rows(projection, (labels, samples.ids))

    def objective(trained):
        hidden = lstm(trained["dense"], trained["embedded"][ids]).reshape(-1, HIDDEN)
        weights = trained["rows"]
        return sampled_softmax_cross_entropy(
            hidden, weights["weight"], own, samples._replace(ids=candidates), bias=weights["bias"]
        )

    gradients = jax.grad(objective)({"dense": dense, "embedded": embedded, "rows": rows})
    gradient = jax.tree.map(lambda values: SparseRows(class_ids, values), gradients["rows"])
    updates, states["projection"] = TABLES.update(gradient, states["projection"])
    projection = optim.apply_updates(projection, updates)
    embedding, dense = _update_rest(embedding, states, row_ids, embedded, dense, gradients)
    if isinstance(sampler, LearnedUnigram):
        sampler = sampler.update(labels)
    return (embedding, projection, dense), states, sampler, key


@jax.jit
def exact_loss(parameters, tokens):
    """The exact mean loss in nats, whatever the model was trained with."""
    embedding, projection, dense = parameters
    hidden = lstm(dense, embedding[tokens[:, :-1]])
    return linear_softmax_cross_entropy(
        hidden, projection["weight"], tokens[:, 1:], bias=projection["bias"]
    )


def methods(counts: np.ndarray):
    """Name, step and sampler of each method."""
    vocab_size = len(counts)
    log_p = jnp.log(jnp.asarray(counts / counts.sum() + 1e-9, jnp.float32))

    def sampled(n):
        return partial(sampled_step, n, log_p)

    return [
        ("full, naive optax", partial(full_step, naive_loss), None),
        ("full, tiled", partial(full_step, ours), None),
        *[(f"log-uniform, {n}", sampled(n), LogUniform(vocab_size)) for n in (64, 512, 4096)],
        ("uniform, 512", sampled(512), Uniform(vocab_size)),
        ("unigram, 512", sampled(512), Unigram.from_counts(counts)),
        ("learned unigram, 512", sampled(512), LearnedUnigram.create(vocab_size)),
        ("in-batch, 1024", sampled(None), None),
    ]


def train(step, sampler, stream, validation, vocab_size, seconds, points=8):
    """The curve: (training seconds, steps, exact validation perplexity) at equal intervals."""
    parameters = initial(vocab_size)
    projection_state = (DENSE_TABLE if step.func is full_step else TABLES).init(parameters[1])
    states = {
        "embedding": TABLES.init(parameters[0]),
        "dense": LSTM.init(parameters[2]),
        "projection": projection_state,
    }
    rows = jnp.asarray(corpus.batches(stream, BATCH, TIME))
    order = np.random.default_rng(0).permutation(len(rows))
    held_out = jnp.asarray(corpus.batches(validation, BATCH * 8, TIME)[0])
    carried = [parameters, states, sampler, jax.random.key(1)]
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*carried, rows[0]).compile()
    compile_s = time.perf_counter() - start
    curve, spent, done = [], 0.0, 0
    for point in range(points + 1):
        start = time.perf_counter()
        while spent + (time.perf_counter() - start) < seconds * point / points:
            for _ in range(4):
                carried = list(compiled(*carried, rows[order[done % len(order)]]))
                done += 1
            jax.block_until_ready(carried[0])
        spent += time.perf_counter() - start
        curve.append((spent, done, float(jnp.exp(exact_loss(carried[0], held_out)))))
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend reports no memory"
    return {
        "curve": curve,
        "compile_s": compile_s,
        "ms_per_step": 1e3 * spent / max(done, 1),
        "temp_bytes": memory.temp_size_in_bytes,
    }


def run(suite: Suite) -> dict:
    """Each method's curve on the Spanish text."""
    stream, validation, counts = corpus.encode(corpus.verses("v"))
    seconds, points = SECONDS[suite], 2 if suite == "quick" else 8
    curves: dict[str, dict] = {}
    for name, step, sampler in methods(counts):
        if suite == "quick" and name not in QUICK_METHODS:
            continue
        progress(f"training with {name} starts")
        curve = train(step, sampler, stream, validation, len(counts), seconds, points)
        progress(f"training with {name} ends: {curve['ms_per_step']:.1f} ms a step")
        curves[name] = curve
    return {
        "corpus": f"Reina-Valera (Spanish, public domain), package {corpus.PACKAGE}",
        "classes": len(counts), "tokens": len(stream), "seconds": seconds, "methods": curves,
    }  # fmt: skip
