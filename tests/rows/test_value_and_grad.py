"""Gradients by rows are those of JAX, whatever the model; nothing has the vocabulary's size."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnets import optim, rows
from jaxnets.kernels import (
    LogUniform,
    SparseRows,
    draw_samples,
    to_dense,
)
from jaxnets.layers import GRU, OutputProjection, look_up
from tests.inputs import summed_rows

pytestmark = pytest.mark.usefixtures("cheap_parameters", "loops")

VOCAB, FEATURES = 31, 4
IDS = np.array([[3, 8, 3, 0], [30, 8, 8, 5]])
LABELS = np.array([[8, 3, 0, 3], [8, 8, 5, 30]])


class Sessions(nnx.Module):
    """A model as users write it."""

    def __init__(self, vocab_size, tied, rngs, features=FEATURES):
        self.embedding = nnx.Embed(vocab_size, features, rngs=rngs)
        # Recurrent before the tied table, plain before others: by rows it is the same.
        self.layer = (GRU if tied else nnx.Linear)(features, features, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.projection = OutputProjection(
            features, vocab_size, tied=self.embedding if tied else None, rngs=rngs
        )

    def hidden(self, ids):
        outputs = self.layer(self.embedding(ids))
        return self.dropout(outputs[0] if isinstance(self.layer, GRU) else outputs)


def sampled(model, batch, key):
    ids, labels = batch
    vocab_size = model.projection.vocab_size
    samples = draw_samples(LogUniform(vocab_size), key, 16, labels, unique=False)
    loss = model.projection.loss(model.hidden(ids), labels, samples=samples)
    return loss, {"perplexity": jnp.exp(loss)}


def dense_of(gradients, like):
    """Gradients as JAX has them, of arrays as ``like``; and how many came by rows."""

    def is_rows(leaf):
        return isinstance(leaf, SparseRows)

    found, leaves = jax.tree.leaves(gradients, is_leaf=is_rows), jax.tree.leaves(like)
    dense = [whole(g, leaf) if is_rows(g) else g for g, leaf in zip(found, leaves, strict=True)]
    return dense, sum(map(is_rows, found))


def whole(gradient, like):
    """The dense gradient of ``like``, by ids that are in order, each once."""
    assert (np.diff(np.asarray(gradient.ids)) > 0).all()
    found = summed_rows(gradient, len(like))
    assert found.shape == like.shape
    return found


def assert_equal_gradients(found, expected, rtol=1e-5, name=""):
    (value, gradients), (expected_value, expected_gradients) = found, expected
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    dense, count = dense_of(gradients, expected_gradients)
    for ours, theirs in zip(dense, jax.tree.leaves(expected_gradients), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-6, err_msg=name)
    return count


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.smoke), False])
def test_module(tied):
    @nnx.jit  # one program: most of it is the same for both
    def both(model, batch, key):
        found = []
        for transform in (rows.value_and_grad, nnx.value_and_grad):
            own = nnx.clone(model)
            (loss, aux), gradients = transform(sampled, has_aux=True)(own, batch, key)
            found.append(((loss, gradients), aux, own.dropout.rngs.count[...]))
        return found

    model = Sessions(VOCAB, tied, nnx.Rngs(0))
    results, metrics, counts = zip(*both(model, (IDS, LABELS), jax.random.key(1)), strict=True)
    for (loss, _), aux in zip(results, metrics, strict=True):
        np.testing.assert_allclose(aux["perplexity"], np.exp(loss), rtol=1e-6)
    assert assert_equal_gradients(*results) == (2 if tied else 3)
    assert counts[0] == counts[1] == 1


def in_loops(table, ids):
    """Read inside a scan, a checkpoint in it, a scan in it, and by one id at a time."""

    def step(carry, ids):
        rows = jax.checkpoint(lambda ids: table[ids] * carry)(ids)
        _, inner = jax.lax.scan(lambda c, id: (c, table[id]), 0, ids)
        return carry + rows.sum(), (rows + inner, table[ids[0]])

    total, (found, firsts) = jax.lax.scan(step, jnp.ones(()), ids, reverse=True)
    return found * total + firsts[:, None]


READS = {
    "index": lambda table, ids: table[ids],
    "look_up": look_up,
    "clip": lambda table, ids: table.at[jnp.where(ids == 5, 200, ids)].get(mode="clip"),
    "fill": lambda table, ids: table.at[jnp.where(ids == 5, 200, ids)].get(
        mode="fill", fill_value=0
    ),
    "negative": lambda table, ids: table[ids.astype(jnp.int32) - VOCAB],
    "jit": jax.jit(lambda table, ids: jnp.take(table, ids, axis=0)),
    "vmap": lambda table, ids: jax.vmap(jax.vmap(lambda id: table[id]))(ids),
    "vmap along": lambda table, ids: jax.vmap(lambda ids: table[ids], 1, 2)(ids).sum(1),
    "remat": jax.checkpoint(lambda table, ids: jnp.sin(table[ids])),
    "float16": lambda table, ids: (table.astype(jnp.float16))[ids].astype(jnp.float32),
    "frozen": lambda table, ids: table[ids] * jax.lax.stop_gradient(table).sum(),
    "loops": in_loops,
}
SAME = ("look_up", "negative", "jit", "vmap")  # what "index" reads, by other operations


def test_reads():
    rng = np.random.default_rng(0)
    parameters = {
        "scale": rng.normal(size=FEATURES).astype(np.float32),
        "table": rng.normal(size=(VOCAB, FEATURES)).astype(np.float32),
    }

    def loss(parameters, ids, read):
        rows = read(parameters["table"], ids) * parameters["scale"]
        return (rows**3).mean() + parameters["table"][ids[0, :2]].sum()

    @jax.jit  # one program: compiling each of them is what this test would cost
    def both(parameters, ids):
        def by(transform, name):
            return transform(lambda parameters: loss(parameters, ids, READS[name]))(parameters)

        found = {name: by(rows.value_and_grad, name) for name in READS}
        return found, {name: by(jax.value_and_grad, name) for name in READS if name not in SAME}

    by_rows, dense = both(parameters, IDS.astype(np.uint8))
    for name, found in by_rows.items():
        expected = dense["index" if name in SAME else name]
        assert isinstance(found[1]["table"], SparseRows), name
        # A float16 sum of JAX's is rounded at each repeated id; ours once.
        rtol = 4 * 2**-10 if name == "float16" else 1e-5
        assert_equal_gradients(found, expected, rtol=rtol, name=name)


def test_eager_and_without_reads():
    table = np.ones((VOCAB, FEATURES), np.float32)
    found = rows.value_and_grad(lambda table: (table[IDS] ** 2).sum())(table)
    times = np.bincount(IDS.ravel(), minlength=VOCAB)[:, None].astype(np.float32)
    assert assert_equal_gradients(found, (IDS.size * FEATURES, 2 * times * table))
    derivative = rows.value_and_grad(lambda p: (p["w"] ** 2).sum(), is_table=lambda p: p == ("t",))
    _, unread = jax.jit(derivative)({"t": table, "w": np.ones(3, np.float32)})
    assert unread["t"].ids.size == 0
    assert unread["w"].tolist() == [2, 2, 2]


def test_id_out_of_range_gets_no_gradient():
    @jax.jit
    def run(table, ids):
        gradient = rows.value_and_grad(lambda table: jnp.nansum(look_up(table, ids)))(table)[1]
        return to_dense(gradient, 5)

    gradient = run(np.ones((5, 1), np.float32), np.array([1, 5, -1, 2**31 - 1, 1]))
    assert np.asarray(gradient)[:, 0].tolist() == [0, 2, 0, 0, 0]


def test_repeated_ids_of_bfloat16_are_summed_in_float32():
    table, ids = np.ones((5, 1), jnp.bfloat16), np.zeros(300, np.int32)
    run = jax.jit(rows.value_and_grad(lambda table: table[ids].astype(jnp.float32).sum()))
    gradient = run(table)[1]
    assert gradient.values.dtype == jnp.bfloat16
    assert np.asarray(gradient.values)[0, 0] == 300


def optimizer_of(model):
    return nnx.Optimizer(
        model,
        optim.partition(optim.adagrad(0.3), optax.adam(1e-2), lambda path: path[0] != "layer"),
        wrt=nnx.Param,
    )


def test_steps_in_a_scan_learn_and_nothing_is_of_the_vocabulary():
    """Under nnx.jit, with donated state, at a vocabulary that stands out in a program's text."""
    vocab_size = 50_021
    model = Sessions(vocab_size, True, nnx.Rngs(0))
    optimizer = optimizer_of(model)

    @functools.partial(nnx.jit, donate_argnums=(0, 1))
    def train(model, optimizer, batch, keys):
        split = nnx.split((model, optimizer))

        def step(state, key):
            model, optimizer = nnx.merge(split[0], state)
            (loss, _), gradients = rows.value_and_grad(sampled, has_aux=True)(model, batch, key)
            gradients, _ = optim.clip_by_norm(gradients, 5.0)
            optimizer.update(model, gradients)
            return nnx.state((model, optimizer)), loss

        state, losses = jax.lax.scan(step, split[1], keys)
        nnx.update((model, optimizer), state)
        return losses

    before = np.asarray(model.embedding.embedding[...])
    arguments = model, optimizer, (IDS, LABELS), jax.random.split(jax.random.key(0), 30)
    compiled = train.lower(*arguments).compile()
    program, losses = compiled.as_text(), np.asarray(compiled(*arguments))
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()
    changed = (np.asarray(model.embedding.embedding[...]) != before).any(1)
    assert changed[[3, 8, 0, 5, 30]].all()
    assert changed.sum() < 1000
    made = re.findall(r"%(\w+)[^=]* = \w+\[(?:1,)?50021\b[^=(]*? ([\w-]+)\(", program)
    # Parameters and what moves them about, and the scatters of rows into them, in place.
    operations = {f"{name} {kind}" if kind == "fusion" else kind for name, kind in made}
    assert "scatter" in operations
    assert operations <= {"parameter", "get-tuple-element", "scatter", "wrapped_scatter fusion"}


@pytest.mark.smoke
def test_table_that_is_used_whole_is_an_error_that_names_it():
    model = Sessions(VOCAB, True, nnx.Rngs(0))

    def exact(model, is_table=None):
        return rows.value_and_grad(
            lambda model: model.projection.exact_loss(model.hidden(IDS), LABELS), is_table=is_table
        )(model)

    with pytest.raises(ValueError, match=r"embedding\.embedding must be read by rows alone"):
        nnx.eval_shape(exact, model)
    gradients = nnx.eval_shape(lambda model: exact(model, lambda path: False)[1], model)
    assert gradients["embedding"]["embedding"].shape == (VOCAB, FEATURES)
    table = np.ones((VOCAB, FEATURES), np.float32)
    for name, loss in {
        "table.*reduce_sum at .*test_value_and_grad": lambda table: table[IDS].sum() + table.sum(),
        "table.*cond at": lambda table: (
            jax.lax.cond(jnp.ones((), bool), lambda: table[IDS].sum(), lambda: 0.0) + table[0, 0]
        ),
        "table.*scan at": lambda table: jax.lax.scan(
            lambda table, ids: (2 * table, table[ids].sum()), table, IDS
        )[1].sum(),
        "table.*result of": lambda table: (table[IDS].sum(), table),
    }.items():
        gradient = rows.value_and_grad(
            lambda parameters, loss=loss: loss(parameters["table"]),
            has_aux="result" in name,
            is_table=lambda path: path == ("table",),
        )
        with pytest.raises(ValueError, match=name):
            jax.eval_shape(gradient, {"table": table})


def test_wrong_losses():
    table = np.ones((VOCAB, FEATURES), np.float32)
    for loss, has_aux, words in (
        (lambda t: t[IDS], False, r"float scalar, got float32 of shape \(2, 4, 4\)"),
        (lambda t: jnp.ones((), jnp.int32), False, "float scalar, got int32"),
        (lambda t: (t[IDS].sum(), 1.0), False, "has_aux=True"),
        (lambda t: t[IDS].sum(), True, r"loss must return \(loss, aux\)"),
    ):
        with pytest.raises(TypeError, match=words):
            rows.value_and_grad(loss, has_aux=has_aux)(table)
