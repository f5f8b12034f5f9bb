"""What goes over the wire, read from compiled programs: tokens and rows, never the vocabulary."""

import jax
import jax.numpy as jnp
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
from tests.sharding.test_sharded import make_mesh, sharded_row_step

TOKENS, FEATURES, SAMPLED = 96, 32, 64
SCALARS = 64  # bytes: the mean over the devices
VOCABS = (4_000, 64_000)


def sharding_over(vocab_axis, token_axis=None):
    return VocabSharding(make_mesh(), vocab_axis, token_axis)


def arrays(sharding, vocab_size):
    tokens = NamedSharding(sharding.mesh, sharding.token_spec)
    table = NamedSharding(sharding.mesh, sharding.table_spec)
    return jax.device_put(
        (jnp.ones((TOKENS, FEATURES)), jnp.ones((vocab_size, FEATURES)), jnp.ones(vocab_size),
         jnp.arange(TOKENS, dtype=jnp.int32)),
        (tokens, table, table, tokens),
    )  # fmt: skip


def sent(function, *arguments):
    """Bytes of the collectives of a compiled function, in all and the largest."""
    found = collectives(jax.jit(function).lower(*arguments).compile().as_text())
    sizes = [collective.bytes for collective in found]
    return sum(sizes), max(sizes)


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


@pytest.mark.parametrize(
    ("vocab_size", "vocab_axes", "token_axis", "token_shards", "vocab_shards"),
    [  # only what is summed over "data", the table's gradient, grows with the vocabulary
        (VOCABS[1], "vocab", None, 1, 4),
        (VOCABS[1], ("data", "vocab"), None, 1, 8),
        *((vocab_size, "vocab", "data", 2, 4) for vocab_size in VOCABS),
    ],
)
def test_the_exact_loss_sends_what_the_model_says(
    vocab_size, vocab_axes, token_axis, token_shards, vocab_shards
):
    sharding = sharding_over(vocab_axes, token_axis)

    def loss(hidden, weight, bias, labels):
        return linear_softmax_cross_entropy(hidden, weight, labels, bias=bias, sharding=sharding)

    total, _ = sent(jax.value_and_grad(loss, (0, 1, 2)), *arrays(sharding, vocab_size))
    layout = Layout(vocab_size, FEATURES, TOKENS // token_shards, vocab_shards, token_shards)
    predicted = exact_cost(layout).wire_bytes
    assert predicted <= total <= predicted + SCALARS
    if token_axis is None:  # nothing in it grows with the vocabulary
        assert predicted == exact_cost(layout._replace(vocab_size=10**9)).wire_bytes


def samples():
    """The first classes, for the first as labels: in a vocabulary of any size."""
    return Samples.from_candidates(
        np.arange(SAMPLED), np.arange(TOKENS), np.zeros(SAMPLED), np.zeros(TOKENS)
    )


def row_step(sharding, *arguments):
    return sharded_row_step(sharding, optim.adagrad(0.1), *arguments, samples())


@pytest.mark.parametrize(
    ("vocab_axes", "token_axis", "token_shards"), [("vocab", None, 1), ("vocab", "data", 2)]
)
def test_a_row_sparse_step_sends_rows_and_not_the_vocabulary(vocab_axes, token_axis, token_shards):
    sharding = sharding_over(vocab_axes, token_axis)
    totals = []
    for vocab_size in VOCABS:
        hidden, weight, bias, labels = arrays(sharding, vocab_size)
        tables = {"weight": weight, "bias": bias}
        state = optim.sharded_init(sharding, optim.adagrad(0.1), tables)

        def step(tables, state, hidden, labels):
            return row_step(sharding, tables, state, hidden, labels)

        total, _ = sent(step, tables, state, hidden, labels)
        totals.append(total)
    assert totals[0] == totals[1]
    layout = Layout(
        VOCABS[0], FEATURES, TOKENS // token_shards, 4, token_shards, num_sampled=SAMPLED
    )
    predicted = sampled_cost(layout).wire_bytes
    assert predicted <= totals[0] <= predicted + SCALARS


def test_the_exact_loss_computes_and_holds_what_the_model_says():
    vocab_size, tile = 65_536, 1024
    sharding = sharding_over("vocab")

    def loss(hidden, weight, bias, labels):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, tiles=Tiles(vocab_tile=tile), sharding=sharding
        )

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    compiled = gradient.lower(*arrays(sharding, vocab_size)).compile()
    layout = Layout(vocab_size, FEATURES, TOKENS, vocab_shards=4, token_tile=128)
    predicted = exact_cost(layout)
    costs = compiled.cost_analysis()
    assert costs is not None
    # XLA counts the body of a loop once. Beside the matmuls are some 7 operations a logit, of
    # 6 * 32 in the matmuls, and tokens are filled up to whole tiles.
    assert 1 < costs["flops"] * (vocab_size // 4 // tile) / predicted.flops < 1.1
    memory = compiled.memory_analysis()
    held = sum(getattr(memory, f"{kind}_size_in_bytes") for kind in ("argument", "output", "temp"))
    tiles = 4 * 4 * TOKENS * tile  # a few tiles of logits
    tokens = 8 * 4 * TOKENS * FEATURES
    assert predicted.resident_bytes < held < 1.05 * predicted.resident_bytes + tiles + tokens


def test_a_row_sparse_step_computes_and_holds_what_the_model_says():
    vocab_size, sharding = 65_536, sharding_over("vocab")
    hidden, weight, bias, labels = arrays(sharding, vocab_size)
    tables = {"weight": weight, "bias": bias}
    state = optim.sharded_init(sharding, optim.adagrad(0.1), tables)
    step = jax.jit(lambda *state: row_step(sharding, *state, hidden, labels), donate_argnums=(0, 1))
    compiled = step.lower(tables, state).compile()
    layout = Layout(vocab_size, FEATURES, TOKENS, vocab_shards=4, num_sampled=SAMPLED)
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

        totals.append(sent(jax.grad(loss, (0, 1, 2)), hidden, weight, bias, labels)[0])
    assert totals[0] == totals[1] < 4 * VOCABS[1] * FEATURES // 4


@pytest.mark.parametrize("unique", [False, True])
def test_a_split_sampler_sends_its_draws(unique):
    sharding = sharding_over("vocab")
    totals = []
    for vocab_size in VOCABS:
        sampler = ShardedUnigram.split(sharding, Unigram.from_counts(jnp.arange(vocab_size) + 1))

        def draw(sampler, key, labels):
            return draw_samples(sampler, key, SAMPLED, labels, unique=unique)

        totals.append(sent(draw, sampler, jax.random.key(0), jnp.arange(5))[0])
    assert totals[0] == totals[1]
    # Three draws a sample, a look-up of each in three tables, and the race's first arrivals.
    assert totals[0] <= 4 * SAMPLED * (3 * 2 + 3 * 4 + 4) + SCALARS
