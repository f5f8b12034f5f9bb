"""What goes over the wire, read from compiled programs: tokens and rows, never the vocabulary."""

from functools import cache

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from benchmarks.scaling import Layout, collectives, exact_cost, sampled_cost
from jaxnets import optim
from jaxnets.kernels import (
    Samples,
    ShardedUnigram,
    Tiles,
    Unigram,
    VocabSharding,
    draw_samples,
    linear_softmax_cross_entropy,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.samplers import without_replacement
from tests.sharding.row_steps import sharded_row_step
from tests.sharding.split import make_mesh

TOKENS, FEATURES, SAMPLED = 96, 32, 64
TILE = 1024
SCALARS = 64  # bytes: the mean over the devices
VOCABS = (4_096, 65_536)


def sharding_over(vocab_axis, token_axis=None):
    return VocabSharding(make_mesh(), vocab_axis, token_axis)


def arrays(sharding, vocab_size):
    tokens = NamedSharding(sharding.mesh, sharding.token_spec)
    table = NamedSharding(sharding.mesh, sharding.table_spec)
    return jax.device_put(
        (np.ones((TOKENS, FEATURES), np.float32), np.ones((vocab_size, FEATURES), np.float32),
         np.ones(vocab_size, np.float32), np.arange(TOKENS, dtype=np.int32)),
        (tokens, table, table, tokens),
    )  # fmt: skip


def sent(compiled):
    """Bytes of the collectives of a compiled program."""
    return sum(collective.bytes for collective in collectives(compiled.as_text()))


def test_the_reader_of_collectives():
    text = """
      %a = f32[20,32]{1,0} all-reduce(%x), channel_id=1
      %b = (f32[], bf16[4]{0}) all-reduce-start(%y, %z)
      %c = s32[7]{0} all-gather(%w), dimensions={0}
      %d = f32[9]{0} add(%a, %all-reduce.3)
    """
    assert [tuple(c) for c in collectives(text)] == [
        ("all-reduce", 20 * 32 * 4),
        ("all-reduce", 4 + 8),
        ("all-gather", 28),
    ]


@cache
def exact_gradient(vocab_axes, token_axis):
    sharding = sharding_over(vocab_axes, token_axis)

    def loss(hidden, weight, bias, labels):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, tiles=Tiles(vocab_tile=TILE), sharding=sharding
        )

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    return gradient.lower(*arrays(sharding, VOCABS[1])).compile()


@pytest.mark.parametrize(
    ("vocab_axes", "token_axis", "token_shards", "vocab_shards"),
    [  # only what is summed over "data", the table's gradient, grows with the vocabulary
        ("vocab", None, 1, 4),
        (("data", "vocab"), None, 1, 8),
        ("vocab", "data", 2, 4),
    ],
)
def test_the_exact_loss_sends_what_the_model_says(
    vocab_axes, token_axis, token_shards, vocab_shards
):
    total = sent(exact_gradient(vocab_axes, token_axis))
    layout = Layout(VOCABS[1], FEATURES, TOKENS // token_shards, vocab_shards, token_shards)
    predicted = exact_cost(layout).wire_bytes
    assert predicted <= total <= predicted + SCALARS
    grown = exact_cost(layout._replace(vocab_size=10**9)).wire_bytes
    assert (grown == predicted) == (token_axis is None)


def samples():
    """The first classes, for the first as labels: in a vocabulary of any size."""
    return Samples.from_candidates(
        np.arange(SAMPLED), np.arange(TOKENS), np.zeros(SAMPLED), np.zeros(TOKENS)
    )


@cache
def row_step(token_axis):
    """A compiled step, tables and state of which are donated."""
    sharding = sharding_over("vocab", token_axis)
    hidden, weight, bias, labels = arrays(sharding, VOCABS[1])
    tables = {"weight": weight, "bias": bias}
    optimizer = optim.adagrad(0.1)
    state = optim.sharded_init(sharding, optimizer, tables)

    def step(tables, state, hidden, labels):
        return sharded_row_step(sharding, optimizer, tables, state, hidden, labels, samples())

    return jax.jit(step, donate_argnums=(0, 1)).lower(tables, state, hidden, labels).compile()


@pytest.mark.parametrize(("token_axis", "token_shards"), [(None, 1), ("data", 2)])
def test_a_row_sparse_step_sends_rows_and_not_the_vocabulary(token_axis, token_shards):
    """By the model, in which it has no part: of 65,536 classes each has less than a byte."""
    layout = Layout(
        VOCABS[1], FEATURES, TOKENS // token_shards, 4, token_shards, num_sampled=SAMPLED
    )
    predicted = sampled_cost(layout).wire_bytes
    assert predicted == sampled_cost(layout._replace(vocab_size=10**9)).wire_bytes
    assert predicted <= sent(row_step(token_axis)) <= predicted + SCALARS


def test_the_exact_loss_computes_and_holds_what_the_model_says():
    compiled = exact_gradient("vocab", None)
    layout = Layout(VOCABS[1], FEATURES, TOKENS, vocab_shards=4, token_tile=128)
    predicted = exact_cost(layout)
    costs = compiled.cost_analysis()
    assert costs is not None
    # The gradients of table and bias are in no loop. XLA counts the body of a loop once, that of
    # the one which looks for a maximum too: a third of the matmuls, which do not run. Beside them
    # are some 7 operations a logit, of 6 * 32 in the matmuls.
    in_no_loop = (2 * FEATURES + 2) / (6 * FEATURES)
    in_loops = (costs["flops"] / predicted.flops - in_no_loop) * (VOCABS[1] // 4 // TILE) - 1 / 3
    assert 2 / 3 < in_loops < 2 / 3 + 0.1
    memory = compiled.memory_analysis()
    held = sum(getattr(memory, f"{kind}_size_in_bytes") for kind in ("argument", "output", "temp"))
    tiles = 4 * 4 * TOKENS * TILE  # a few tiles of logits
    tokens = 8 * 4 * TOKENS * FEATURES
    assert predicted.resident_bytes < held < 1.05 * predicted.resident_bytes + tiles + tokens


def test_a_row_sparse_step_computes_and_holds_what_the_model_says():
    compiled = row_step(None)
    layout = Layout(VOCABS[1], FEATURES, TOKENS, vocab_shards=4, num_sampled=SAMPLED)
    predicted = sampled_cost(layout)
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert costs is not None
    # The forward's product, or what is computed of it again, is one of the three matmuls.
    assert 2 / 3 < costs["flops"] / predicted.flops < 1.2
    # Tables and state are updated where they are; the rest has the size of the rows.
    assert memory.alias_size_in_bytes >= predicted.resident_bytes
    rows = 4 * (TOKENS + SAMPLED) * (FEATURES + 1)
    assert memory.temp_size_in_bytes < 16 * rows
    assert memory.argument_size_in_bytes < predicted.resident_bytes + 16 * rows


def test_the_sampled_loss_with_a_dense_gradient_does_not_send_it():
    sharding = sharding_over("vocab", "data")
    totals = []
    for vocab_size in VOCABS:
        hidden, weight, bias, labels = arrays(sharding, vocab_size)

        def loss(hidden, weight, bias, labels):
            return sampled_softmax_cross_entropy(
                hidden, weight, labels, samples(), bias=bias, sharding=sharding
            )

        gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
        totals.append(sent(gradient.lower(hidden, weight, bias, labels).compile()))
    assert totals[0] == totals[1] < 4 * VOCABS[1] * FEATURES // 4


@pytest.mark.parametrize("unique", [False, True])
def test_a_split_sampler_sends_its_draws(unique, monkeypatch):
    # Of a number that all devices draw alike, and which takes longest to compile.
    monkeypatch.setattr(without_replacement, "_poisson", lambda _key, mean: mean.astype(int))
    counts = Unigram.from_counts(np.arange(VOCABS[1]) + 1)
    sampler = ShardedUnigram.split(sharding_over("vocab"), counts)

    @jax.jit
    def draw(sampler, key, labels):
        return draw_samples(sampler, key, SAMPLED, labels, unique=unique)

    total = sent(draw.lower(sampler, jax.random.key(0), np.arange(5)).compile())
    # Three draws a sample, a look-up of each in three tables, and the race's first arrivals.
    assert total <= 4 * SAMPLED * (3 * 2 + 3 * 4 + 4) + SCALARS < VOCABS[1]
