"""A batch split over a mesh of any kind of axes: every kernel as on one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
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
from jaxnets.kernels.samplers import without_replacement
from jaxnets.models import Seq2Seq, Seq2SeqConfig, beam_search, greedy_search
from tests.exact_loss import exact_loss
from tests.fixed_samples import fixed_samples
from tests.near import assert_near
from tests.sampled_losses import sampled_loss
from tests.sharding import whole_batch
from tests.with_bias import with_bias

BATCH, TIME, FEATURES, VOCAB = 8, 3, 4, 48
SAMPLED, EPSILON = np.arange(8) * 5, float(np.finfo(np.float32).eps)
EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto
KINDS = {
    "explicit": (EXPLICIT, EXPLICIT),
    "explicit and auto": (EXPLICIT, AUTO),
    "auto and explicit": (AUTO, EXPLICIT),
}


def make_mesh(kind):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=KINDS[kind])


def normal(seed, *shape):
    """Of NumPy, which compiles nothing."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


HIDDEN, WEIGHT, BIAS = (
    normal(0, BATCH, TIME, FEATURES),
    normal(1, VOCAB, FEATURES),
    normal(2, VOCAB),
)
LABELS = np.random.default_rng(3).integers(0, VOCAB, (BATCH, TIME)).astype(np.int32)
BATCHED = {
    "hidden": HIDDEN,
    "labels": LABELS,
    "token_weights": np.arange(BATCH * TIME, dtype=np.int32).reshape(BATCH, TIME) % 3,
    "sequences": normal(4, BATCH, 6, FEATURES),
    "lengths": np.arange(BATCH, dtype=np.int32) % 7,
    "mask": np.arange(BATCH * 6).reshape(BATCH, 6) % 5 != 0,
    "temperature": np.linspace(0.5, 2, BATCH * TIME, dtype=np.float32).reshape(BATCH, TIME),
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
DROPOUT = {"recurrent_dropout": 0.5, "key": jax.random.key(0)}


def losses(batch, tables):
    """Of the softmax: means, and a loss for each token."""
    hidden, labels = batch["hidden"], batch["labels"]
    arrays, bias = (hidden, tables["weight"], labels), tables["bias"]
    draw = partial(draw_samples, LogUniform(VOCAB), jax.random.key(0))
    samples, own = draw(2, labels), draw(8, labels, unique=False, per_token=True)
    weights, each = batch["token_weights"], batch["temperature"]
    return (
        linear_softmax_cross_entropy(*arrays, bias=bias, token_weights=weights, temperature=each),
        sampled_softmax_cross_entropy(*arrays, samples, bias=bias, ignore_index=3),
        nce_loss(*arrays, own, bias=bias, token_weights=weights, reduction="none"),
    )


def losses_by_hand():
    draw = partial(draw_samples, LogUniform(VOCAB), jax.random.key(0))
    samples, own = draw(2, LABELS), draw(8, LABELS, unique=False, per_token=True)
    arrays, weights = (HIDDEN, WEIGHT, LABELS), BATCHED["token_weights"]
    exact, _, of_exact = exact_loss(*arrays, BIAS, temperature=BATCHED["temperature"])
    sampled, of_sampled = sampled_loss("softmax", *arrays, samples, BIAS)
    nce, of_nce = sampled_loss("nce", *arrays, own, BIAS, remove_accidental_hits=False)
    shares = [kept / kept.sum() for kept in (weights, LABELS != 3)]
    means = (exact * shares[0]).sum(), (sampled * shares[1]).sum()
    *gradients, d_temperature = of_exact(np.cos(means[0]) * shares[0])
    more = of_sampled(np.cos(means[1]) * shares[1]), of_nce(np.cos(nce * weights) * weights)
    found = [sum(each) for each in zip(gradients, *more, strict=True)]
    return (*means, nce * weights), (*found, d_temperature)


def capped(batch, tables):
    return linear_softmax_cross_entropy(
        batch["hidden"], tables["weight"], batch["labels"], bias=tables["bias"], ignore_index=3,
        soft_cap=3.0, temperature=1.3, return_log_sum_exp=True,
    )  # fmt: skip


def capped_by_hand():
    kept = LABELS != 3
    losses, z, backward = exact_loss(HIDDEN, WEIGHT, LABELS, BIAS, soft_cap=3.0, temperature=1.3)
    mean = (losses * kept).sum() / kept.sum()
    gradients = backward(np.cos(mean) * kept / kept.sum(), np.cos(z) * kept)[:3]
    return (mean, z * kept), (*gradients, np.zeros(LABELS.shape))


def over_all_classes_and_rows(batch, tables):
    hidden, labels = batch["hidden"], batch["labels"]
    arrays, bias = (hidden, tables["weight"]), tables["bias"]
    ids, rows, local = gather_rows(tables["weight"], labels)
    return (
        linear_top_k(*arrays, 3, bias=bias, exclude=labels[..., None]),
        linear_label_rank(*arrays, labels, bias=bias, exclude=labels[..., None] // 2),
        in_batch_softmax_cross_entropy(hidden[:, 0], hidden[:, 1], labels[:, 0] % 5),
        linear_softmax_cross_entropy(hidden, rows, local, reduction="sum"),
        to_dense(SparseRows(ids, rows), VOCAB),
    )


def layers(batch, tables):
    inputs, mask = batch["sequences"].swapaxes(0, 1), batch["mask"].swapaxes(0, 1)
    return (
        lstm(inputs, None, tables["lstm"], mask=mask, time_first=True, **DROPOUT),
        gru(batch["sequences"], None, tables["gru"], lengths=batch["lengths"], reverse=True),
        pointwise_conv(batch["images"], tables["pointwise"], None, activation="relu"),
        depthwise_conv(batch["images"], tables["depthwise"]),
    )


def one_sequence(batch, tables):
    return lstm(batch["sequences"].sum(0), None, tables["lstm"], batched=False)


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
    ("kind", "function", "by_hand"),
    [("explicit", losses, losses_by_hand), ("explicit and auto", capped, capped_by_hand)],
)
def test_losses_and_gradients_are_those_by_hand(monkeypatch, kind, function, by_hand):
    # How often a class repeats is one number on every device, and most of what is compiled.
    monkeypatch.setattr(without_replacement, "_poisson", lambda _key, mean: mean.astype(int))
    batch, tables = placed(make_mesh(kind))
    (_, found), (of_batch, of_tables) = jax.jit(partial(with_gradients, function))(batch, tables)
    gradients = {**of_batch, **of_tables}
    names = "hidden", "weight", "bias", "temperature"
    got = found, [gradients[name] for name in names]
    assert_near(got, by_hand(), 64 * EPSILON, 1e-3)
    for name in names:
        array = {**batch, **tables}[name]
        assert gradients[name].sharding.is_equivalent_to(array.sharding, array.ndim)


@pytest.mark.parametrize(
    ("function", "by_hand"),
    [(over_all_classes_and_rows, whole_batch.softmax_functions), (layers, whole_batch.layers)],
)
def test_values_and_gradients_are_those_of_the_whole_batch(loops, function, by_hand):
    batch, tables = placed(make_mesh("explicit"))
    (_, found), gradients = jax.jit(partial(with_gradients, function))(batch, tables)
    wanted, some = by_hand(BATCHED | DROPOUT, TABLES)
    arrays = {name: batch[name] for name in gradients[0]}, tables
    every = jax.tree.map(lambda a: np.zeros(a.shape), arrays)
    all_wanted = [{name: some.get(name, zeros[name]) for name in zeros} for zeros in every]
    # Sums over batch, time and classes in another order.
    assert_near((found, gradients), (wanted, all_wanted), 64 * EPSILON, 1e-3)
    for gradient, array in zip(*map(jax.tree.leaves, (gradients, arrays)), strict=True):
        assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)


@pytest.mark.parametrize(
    ("kind", "function"), [("explicit and auto", one_sequence), ("explicit", layers)]
)
def test_loops_that_are_written_out_are_traced(kind, function):
    batch, tables = placed(make_mesh(kind))
    # Of another length, so that no loop that was traced is found again.
    short = {name: batch[name][:, :5] for name in ("sequences", "mask")}
    jax.eval_shape(partial(with_gradients, function), batch | short, tables)


def test_translation(loops, cheap_parameters):
    """Embeddings, a reversed source, attention; beams are a row's on any device, more is traced."""
    model = Seq2Seq(
        Seq2SeqConfig(20, 24, features=8, dropout=0.0, bidirectional=False, reverse_source=True),
        rngs=nnx.Rngs(0),
    )
    graph, state = nnx.split(model)
    words = 3 + np.arange(BATCH * 5, dtype=np.int32).reshape(BATCH, 5) % 17
    batch = words, np.arange(BATCH) % 5 + 1, words, np.full(BATCH, 5)

    def loss(state, *batch):
        return nnx.merge(graph, state).loss(*batch)

    def traced(state, *batch):
        found = greedy_search(nnx.merge(graph, state), *batch[:2], max_time=4)
        return jax.value_and_grad(loss, allow_int=True)(state, *batch), found

    def run(state, *batch):
        beams = beam_search(nnx.merge(graph, state), *batch[:2], max_time=4, beam=2)
        return loss(state, *batch), beams

    mesh = make_mesh("explicit")
    state = jax.device_put(state, NamedSharding(mesh, P()))
    program, found = jax.jit(run), []
    for shift in (0, 3):
        moved = [np.roll(array, shift, axis=0) for array in batch]
        moved = jax.device_put(moved, NamedSharding(mesh, P("data")))
        mean, beams = program(state, *moved)
        found.append((mean, jax.tree.map(lambda a, by=-shift: np.roll(a, by, axis=0), beams)))
    assert_near(*found, 64 * EPSILON, 1e-3)
    assert len(np.unique(found[0][1].scores)) > 2  # rows are told apart
    jax.eval_shape(traced, state, *moved)


def test_nothing_but_gradients_is_sent(loops):
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
    ("kind", "vocab_axis", "token_axis", "of"),
    [
        ("explicit", "model", "data", "exact"),
        ("explicit", None, ["data", "model"], "sampled"),
        ("auto and explicit", ("model",), ("data",), "exact"),
    ],
)
def test_eager_gradients_and_checks_of_a_split_vocabulary(kind, vocab_axis, token_axis, of):
    """Outside of ``jit``, without ``jax.set_mesh``; tokens left out leave no trace."""
    mesh = make_mesh(kind)
    sharding = VocabSharding(mesh, vocab_axis, token_axis)
    specs = sharding.token_spec, sharding.table_spec, sharding.table_spec, sharding.token_spec
    weights, bias = np.ones((BATCH, TIME), np.float32), BIAS.copy()
    hidden, labels = HIDDEN.copy(), np.minimum(LABELS, VOCAB - 3)
    weights[0, 0], hidden[0, 0], bias[-2:] = 0, np.nan, -np.inf
    labels[0, 0], labels[1, 0] = VOCAB, -1
    whole = hidden, WEIGHT, bias, labels
    arrays = jax.device_put(whole, tuple(NamedSharding(mesh, spec) for spec in specs))
    # By hand, of the tokens that count.
    kept = (weights != 0) & (labels != -1)
    some = hidden[kept], WEIGHT, labels[kept]
    options = {"token_weights": weights, "ignore_index": -1, "sharding": sharding}
    if of == "exact":
        loss = linear_softmax_cross_entropy
        losses, _, backward = exact_loss(*some, bias)
    else:
        loss, samples = sampled_softmax_cross_entropy, fixed_samples(VOCAB, labels % VOCAB, SAMPLED)
        counts = samples.labels_log_expected_count[kept]
        options["samples"] = samples
        few = samples._replace(labels_log_expected_count=counts)
        losses, backward = sampled_loss("softmax", *some, few, bias)
    d_hidden, *others = backward(1 / losses.size)[:3]
    of_all = np.zeros(hidden.shape)
    of_all[kept] = d_hidden
    got = jax.value_and_grad(partial(with_bias(loss), **options), (0, 1, 2))(*arrays)
    assert_near(got, (losses.mean(), (of_all, *others)), 64 * EPSILON, 1e-3)
    if of == "sampled":
        return
    hidden, weight, bias, labels = arrays
    checked = checked_loss(partial(loss, **options))
    checked = checked if kind == "explicit" else jax.jit(checked)
    error, value = checked(hidden, weight, labels, bias=bias)
    assert error.get() is None
    assert np.isfinite(value)
    wrong = whole[3].copy()
    wrong[1, 1] = VOCAB
    wrong = jax.device_put(wrong, labels.sharding)
    if kind == "explicit":  # outside of jit it is known
        with pytest.raises(ValueError, match=rf"labels must lie in .*{VOCAB}\), got {VOCAB}"):
            checked(hidden, weight, wrong, bias=bias)
        return
    error, _ = checked(hidden, weight, wrong, bias=bias)
    assert f"labels must lie in [0, {VOCAB}), got {VOCAB}" in error.get()


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
    losses, *_ = exact_loss(HIDDEN, WEIGHT, LABELS)
    assert_near(jax.jit(over_devices(check_vma=False))(*arrays), losses.mean(), 1e-5, 0)
