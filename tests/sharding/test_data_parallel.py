"""A batch split over a mesh of any kind of axes: every kernel as on one device."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.scaling import collectives
from jaxnets.kernels import (
    GRUParameters,
    LogUniform,
    LSTMParameters,
    SparseRows,
    VocabSharding,
    checked_loss,
    depthwise_conv,
    draw_samples,
    gather_rows,
    gru,
    in_batch_softmax_cross_entropy,
    linear_label_rank,
    linear_softmax_cross_entropy,
    linear_top_k,
    lstm,
    nce_loss,
    pointwise_conv,
    sampled_softmax_cross_entropy,
    to_dense,
)
from jaxnets.models import Seq2Seq, Seq2SeqConfig, beam_search, greedy_search
from tests.near import assert_near
from tests.with_bias import with_bias

BATCH, TIME, FEATURES, VOCAB = 8, 3, 4, 48
EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto
KINDS = {
    "explicit": (EXPLICIT, EXPLICIT),
    "explicit and auto": (EXPLICIT, AUTO),
    "auto and explicit": (AUTO, EXPLICIT),
}


def make_mesh(kind):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=KINDS[kind])


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


HIDDEN, WEIGHT, BIAS = (
    normal(0, BATCH, TIME, FEATURES),
    normal(1, VOCAB, FEATURES),
    normal(2, VOCAB),
)
LABELS = jax.random.randint(jax.random.key(3), (BATCH, TIME), 0, VOCAB)
BATCHED = {
    "hidden": HIDDEN,
    "labels": LABELS,
    "token_weights": jnp.arange(BATCH * TIME).reshape(BATCH, TIME) % 3,
    "sequences": normal(4, BATCH, 6, FEATURES),
    "lengths": jnp.arange(BATCH) % 7,
    "mask": jnp.arange(BATCH * 6).reshape(BATCH, 6) % 5 != 0,
    "temperature": jnp.linspace(0.5, 2, BATCH * TIME).reshape(BATCH, TIME),
    "images": normal(5, BATCH, 5, 5, FEATURES),
}
TABLES = {
    "weight": WEIGHT,
    "bias": BIAS,
    "lstm": LSTMParameters(normal(6, FEATURES, 16), normal(7, 4, 16), normal(8, 16)),
    "gru": GRUParameters(normal(6, FEATURES, 12), normal(7, 4, 12), normal(8, 12), normal(9, 12)),
    "pointwise": normal(10, FEATURES, 6),
    "depthwise": normal(11, 3, 3, FEATURES),
}


def losses(batch, tables):
    """Of the softmax: means, sums and a loss for each token."""
    hidden, labels = batch["hidden"], batch["labels"]
    arrays, bias = (hidden, tables["weight"], labels), tables["bias"]
    samples = draw_samples(LogUniform(VOCAB), jax.random.key(0), 8, labels)
    own = draw_samples(
        LogUniform(VOCAB), jax.random.key(0), 8, labels, unique=False, per_token=True
    )
    ids, rows, local = gather_rows(tables["weight"], labels)
    return (
        linear_softmax_cross_entropy(
            *arrays,
            bias=bias,
            token_weights=batch["token_weights"],
            temperature=batch["temperature"],
        ),
        linear_top_k(*arrays[:2], 3, bias=bias, exclude=labels[..., None]),
        linear_label_rank(*arrays, bias=bias, exclude=labels[..., None] // 2),
        sampled_softmax_cross_entropy(*arrays, samples, bias=bias, ignore_index=3),
        nce_loss(*arrays, own, bias=bias, token_weights=batch["token_weights"], reduction="none"),
        in_batch_softmax_cross_entropy(hidden[:, 0], hidden[:, 1], labels[:, 0]),
        linear_softmax_cross_entropy(hidden, rows, local, reduction="sum"),
        to_dense(SparseRows(ids, rows), VOCAB),
    )


def layers(batch, tables):
    inputs, lengths = batch["sequences"], batch["lengths"]
    return (
        lstm(inputs, None, tables["lstm"], recurrent_dropout=0.5, key=jax.random.key(0)),
        gru(inputs, None, tables["gru"], lengths=lengths, reverse=True),
        pointwise_conv(batch["images"], tables["pointwise"], None, activation="relu"),
        depthwise_conv(batch["images"], tables["depthwise"]),
    )


def exact_and_lstm(batch, tables):
    arrays = batch["hidden"], tables["weight"], batch["labels"]
    inputs, mask = batch["sequences"].swapaxes(0, 1), batch["mask"].swapaxes(0, 1)
    return (
        linear_softmax_cross_entropy(
            *arrays,
            bias=tables["bias"],
            ignore_index=3,
            soft_cap=3.0,
            temperature=1.3,
            return_log_sum_exp=True,
        ),
        lstm(inputs, None, tables["lstm"], mask=mask, time_first=True),
        lstm(batch["sequences"].sum(0), None, tables["lstm"], batched=False),
    )


def placed(mesh):
    def put(tree, spec):
        return jax.device_put(tree, NamedSharding(mesh, spec))

    return put(BATCHED, P("data")), put(TABLES, P())


def with_gradients(function, batch, tables):
    floats = {name: a for name, a in batch.items() if jnp.issubdtype(a.dtype, jnp.floating)}

    def scalar(floats, tables):
        found = function(batch | floats, tables)
        parts = [a for a in jax.tree.leaves(found) if jnp.issubdtype(a.dtype, jnp.floating)]
        return sum(jnp.sin(a).sum() for a in parts), found

    return jax.value_and_grad(scalar, (0, 1), has_aux=True)(floats, tables)


@pytest.mark.parametrize(
    ("kind", "function"),
    [("explicit", losses), ("explicit", layers), ("explicit and auto", exact_and_lstm)],
)
def test_values_and_gradients_are_those_of_one_device(kind, function):
    wanted = jax.jit(partial(with_gradients, function))(BATCHED, TABLES)
    batch, tables = placed(make_mesh(kind))
    got = jax.jit(partial(with_gradients, function))(batch, tables)
    # Sums over batch, time and classes in another order.
    assert_near(got, wanted, 64 * float(jnp.finfo(jnp.float32).eps), 1e-3)
    arrays = jax.tree.leaves(({name: batch[name] for name in got[1][0]}, tables))
    for gradient, array in zip(jax.tree.leaves(got[1]), arrays, strict=True):
        assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)


def test_translation():
    """Embeddings, a reversed source, attention and both searches."""
    model = Seq2Seq(
        Seq2SeqConfig(20, 24, features=8, dropout=0.0, bidirectional=False, reverse_source=True),
        rngs=nnx.Rngs(0),
    )
    graph, state = nnx.split(model)
    words = 3 + jnp.arange(BATCH * 5).reshape(BATCH, 5) % 17
    batch = words, jnp.arange(BATCH) % 5 + 1, words, jnp.full(BATCH, 5)

    def run(state, source, source_lengths, target, target_lengths):
        def loss(state):
            return nnx.merge(graph, state).loss(source, source_lengths, target, target_lengths)

        model = nnx.merge(graph, state)
        found = greedy_search(model, source, source_lengths, max_time=4)
        beams = beam_search(model, source, source_lengths, max_time=4, beam=2)
        return jax.value_and_grad(loss, allow_int=True)(state), found, beams

    mesh = make_mesh("explicit")
    floats = lambda tree: [a for a in jax.tree.leaves(tree) if a.dtype != jax.dtypes.float0]  # noqa: E731
    wanted = floats(jax.jit(run)(state, *batch))
    state = jax.device_put(state, NamedSharding(mesh, P()))
    got = floats(jax.jit(run)(state, *jax.device_put(batch, NamedSharding(mesh, P("data")))))
    assert_near(got, wanted, 64 * float(jnp.finfo(jnp.float32).eps), 1e-3)


def test_nothing_but_gradients_is_sent():
    """No device gets another's rows: there are sums, none larger than a table, and no gather."""

    def loss(batch, tables):
        arrays = batch["hidden"], tables["weight"], batch["labels"]
        outputs, _ = lstm(batch["sequences"], None, tables["lstm"])
        exact = linear_softmax_cross_entropy(*arrays, bias=tables["bias"])
        return exact + (outputs**2).sum()

    batch, tables = placed(make_mesh("explicit"))
    text = jax.jit(jax.grad(loss, 1)).lower(batch, tables).compile().as_text()
    found = collectives(text)
    assert {kind for kind, _ in found} == {"all-reduce"}
    gradients = 4 * sum(a.size for a in jax.tree.leaves((WEIGHT, BIAS, TABLES["lstm"])))
    assert sum(size for _, size in found) <= gradients + 64


@pytest.mark.parametrize(
    ("kind", "vocab_axis", "token_axis"),
    [
        ("explicit", "model", "data"),
        ("explicit", None, ["data", "model"]),
        ("auto and explicit", ("model",), ("data",)),
    ],
)
def test_eager_gradients_and_checks_of_a_split_vocabulary(kind, vocab_axis, token_axis):
    """Outside of ``jit``, without ``jax.set_mesh``; tokens left out leave no trace."""
    mesh = make_mesh(kind)
    sharding = VocabSharding(mesh, vocab_axis, token_axis)
    specs = sharding.token_spec, sharding.table_spec, sharding.table_spec, sharding.token_spec
    weights = jnp.ones((BATCH, TIME)).at[0, 0].set(0)
    hidden, labels = HIDDEN.at[0, 0].set(jnp.nan), LABELS.at[0, 0].set(VOCAB).at[1, 0].set(-1)
    labels = jnp.where(labels < VOCAB, jnp.minimum(labels, VOCAB - 3), VOCAB)
    whole = hidden, WEIGHT, BIAS.at[-2:].set(-jnp.inf), labels
    arrays = jax.device_put(whole, tuple(NamedSharding(mesh, spec) for spec in specs))
    samples = draw_samples(LogUniform(VOCAB), jax.random.key(0), 8, labels)
    for loss, more in (
        (linear_softmax_cross_entropy, {}),
        (sampled_softmax_cross_entropy, {"samples": samples}),
    ):
        options = {"token_weights": weights, "ignore_index": -1, **more}
        wanted, got = (
            jax.value_and_grad(partial(with_bias(loss), **options, **split), (0, 1, 2))(*given)
            for split, given in (({}, whole), ({"sharding": sharding}, arrays))
        )
        assert jnp.isfinite(got[0])
        assert_near(got, wanted, 64 * float(jnp.finfo(jnp.float32).eps), 1e-3)
    loss = partial(linear_softmax_cross_entropy, sharding=sharding, ignore_index=-1)
    hidden, weight, bias, labels = arrays
    error, value = checked_loss(loss)(hidden, weight, labels, bias=bias, token_weights=weights)
    assert error.get() is None
    assert jnp.isfinite(value)
    wrong = jax.device_put(whole[3].at[1, 1].set(VOCAB), arrays[3].sharding)
    error, _ = jax.jit(checked_loss(loss))(hidden, weight, wrong, bias=bias, token_weights=weights)
    assert f"labels must lie in [0, {VOCAB}), got {VOCAB}" in error.get()


def test_a_mesh_in_place_of_a_sharding_is_named(users_checks):
    mesh, samples = (
        make_mesh("explicit"),
        draw_samples(LogUniform(VOCAB), jax.random.key(0), 8, LABELS),
    )
    for call in (
        partial(linear_softmax_cross_entropy, sharding=mesh),
        partial(sampled_softmax_cross_entropy, sharding=mesh, samples=samples),
    ):
        with pytest.raises(TypeError, match=r"got a Mesh .*write VocabSharding\(mesh, vocab_axis="):
            call(HIDDEN, WEIGHT, LABELS, bias=BIAS)


def test_a_checked_shard_map_says_what_to_write():
    mesh = jax.make_mesh((8,), ("data",))

    def step(hidden, weight, labels):
        loss = linear_softmax_cross_entropy(hidden, weight, labels)
        return jax.lax.pmean(loss, "data")

    def over_devices(**options):
        specs = P("data"), P(), P("data")
        return jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P(), **options)

    arrays = jax.device_put(
        (HIDDEN, WEIGHT, LABELS), tuple(NamedSharding(mesh, s) for s in (P("data"), P(), P("data")))
    )
    with pytest.raises(ValueError, match=r"write jax.shard_map\(\.\.\., check_vma=False\)"):
        over_devices()(*arrays)
    wanted = linear_softmax_cross_entropy(HIDDEN, WEIGHT, LABELS)
    assert_near(over_devices(check_vma=False)(*arrays), wanted, 1e-5, 0)
