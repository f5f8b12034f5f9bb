"""Gradients by rows of tables that are split over devices, of a whole step as users write it."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding

from jaxnets import optim, rows
from jaxnets.kernels import (
    VocabSharding,
    gather_rows,
    sampled_softmax_cross_entropy,
)
from tests.fixed_samples import fixed_samples
from tests.sampled_losses import sampled_loss

VOCAB, FEATURES, BATCH = 64, 4, 8
RNG = np.random.default_rng(0)
TABLES = {
    "embedding": RNG.normal(size=(VOCAB, FEATURES)).astype(np.float32),
    "weight": RNG.normal(size=(VOCAB, FEATURES)).astype(np.float32),
    "bias": RNG.normal(size=VOCAB).astype(np.float32),
}
KERNEL = RNG.normal(size=(FEATURES, FEATURES)).astype(np.float32)
IDS, LABELS = RNG.integers(0, VOCAB, (2, BATCH)).astype(np.int32)
IDS[:2] = 5  # read twice


def test_loss_gradients_and_step_are_those_of_whole_tables():
    """By axes of one kind; by the other what is refused is refused when traced."""
    samples = fixed_samples(VOCAB, LABELS, 3 * np.arange(16))
    optimizer = optim.adagrad(0.1)
    read = TABLES["embedding"][IDS]
    losses, backward = sampled_loss(
        "softmax", read @ KERNEL, TABLES["weight"], LABELS, samples, TABLES["bias"]
    )
    of_hidden, of_weight, of_bias = backward(1 / BATCH)
    of_embedding = np.zeros((VOCAB, FEATURES))
    np.add.at(of_embedding, IDS, of_hidden @ KERNEL.T)
    value, of_kernel = losses.mean(), read.T @ of_hidden
    gradients = {"embedding": of_embedding, "weight": of_weight, "bias": of_bias}
    moved = {
        name: TABLES[name] - 0.1 * g / np.sqrt(0.1 + g**2 + 1e-7) for name, g in gradients.items()
    }

    def case(kind):
        mesh = jax.make_mesh((4, 2), ("vocab", "data"), axis_types=(kind,) * 2)
        sharding = VocabSharding(mesh, "vocab", "data")

        def by_rows(parameters, ids, labels, samples):
            tables, kernel = parameters
            read = gather_rows(tables["embedding"], ids, sharding=sharding)
            hidden = read.rows[read.local_ids] @ kernel
            head = {name: tables[name] for name in ("weight", "bias")}
            _, small, (own, drawn) = gather_rows(head, (labels, samples.ids), sharding=sharding)
            return sampled_softmax_cross_entropy(
                hidden, small["weight"], own, samples._replace(ids=drawn), bias=small["bias"]
            )

        def step(tables):
            found, (of_tables, dense) = rows.value_and_grad(by_rows)(
                (tables, KERNEL), IDS, LABELS, samples
            )
            state = optim.sharded_init(sharding, optimizer, tables)
            after, _ = optim.sharded_update(sharding, optimizer, of_tables, state, tables)
            return found, of_tables, dense, after

        return mesh, step, jax.device_put(TABLES, NamedSharding(mesh, sharding.table_spec))

    mesh, step, placed = case(AxisType.Explicit)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(step, placed)
    mesh, step, placed = case(AxisType.Auto)
    with jax.set_mesh(mesh):
        found, of_tables, dense, after = results = jax.jit(step)(placed)
    for got, traced in zip(jax.tree.leaves(results), jax.tree.leaves(shapes), strict=True):
        assert got.shape == traced.shape
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(dense, of_kernel, rtol=1e-5, atol=1e-6)
    for name, wanted in gradients.items():
        assert of_tables[name].ids.size <= BATCH + 16  # of what the step read, not of 64
        ids, values = jax.device_get(tuple(of_tables[name]))
        got = np.zeros_like(wanted)
        got[ids[ids < VOCAB]] = values[ids < VOCAB]
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after[name], moved[name], rtol=1e-5, atol=1e-6)
