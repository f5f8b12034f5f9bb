"""The tiles that are chosen: by the caches, within a budget, without much padding."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxnets.kernels import Tiles, linear_softmax_cross_entropy
from jaxnets.kernels.caches import second_level_bytes
from jaxnets.kernels.linear_softmax import tile_sizes
from jaxnets.kernels.linear_softmax.tile_sizes import (
    MOST_ROUNDINGS,
    TOKENS,
    Sizes,
    chosen_tiles,
    even,
)
from tests.exact_loss import exact_loss

FLOAT32 = "float32", "float32"
SIZES = [
    (64, 16, 1000), (600, 64, 2500), (4096, 512, 32_768),
]  # fmt: skip


def temporaries(loss, tokens, features, vocab_size, dtype="float32"):
    """The bytes that the compiled value and gradient take beside what goes in and out."""
    shapes = [((tokens, features), dtype), ((vocab_size, features), dtype), ((tokens,), "int32")]
    arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("sizes", SIZES)
def test_nobody_need_set_a_budget(sizes):
    """A quarter of what whole logits take, or 100 MB where that is more: within a tenth."""
    whole = 2 * 4 * sizes[0] * sizes[2]
    taken = temporaries(linear_softmax_cross_entropy, *sizes)
    few = 4 * 128 * (sizes[2] + 6 * sizes[1]) + 4 * 2048 * (sizes[1] + 256)
    assert taken <= 1.1 * max(few, min(whole, max(whole / 4, 100e6)))


@pytest.mark.parametrize(
    ("memory_mb", "dtype"), [(6, "float32"), (6, "bfloat16"), (100, "bfloat16")]
)
def test_a_budget_is_kept_to(memory_mb, dtype):
    loss = partial(linear_softmax_cross_entropy, tiles=Tiles(memory_mb=memory_mb))
    # The other would take more with a small budget: a float32 copy of the table's gradient.
    tokens = 4096 if dtype == "float32" else 512
    taken = temporaries(loss, tokens, 128, 32_768, dtype)
    assert memory_mb / 5 * 1e6 <= taken <= memory_mb * 1e6


def test_tokens_within_a_budget(monkeypatch):
    sizes = Sizes(4096, 512, 32_768, *FLOAT32)
    with monkeypatch.context() as patched:
        for mebibytes in (2, 4, 64):
            patched.setattr(tile_sizes, "second_level_bytes", lambda m=mebibytes: m * 2**20)
            assert chosen_tiles(Tiles(memory_mb=25), "cpu", sizes) == (128, 1024)
    assert chosen_tiles(Tiles(memory_mb=1e-6), "cpu", sizes)[0] == 8
    assert chosen_tiles(Tiles(memory_mb=1e6), "cpu", sizes)[0] == TOKENS
    assert chosen_tiles(Tiles(), "cpu", sizes)[0] == TOKENS
    assert chosen_tiles(Tiles(), "tpu", sizes) == (2048, 4096)
    assert chosen_tiles(Tiles(memory_mb=50), "tpu", sizes)[0] < TOKENS
    narrow = sizes._replace(dtype="bfloat16", table_dtype="bfloat16")
    assert chosen_tiles(Tiles(memory_mb=25), "cpu", narrow)[0] * MOST_ROUNDINGS == 4096
    assert chosen_tiles(Tiles(3, 5), "cpu", sizes) == (3, 5)


@pytest.mark.parametrize(
    ("mebibytes", "classes"), [(0.25, 1024), (2, 1024), (4, 2048), (128, 4096)]
)
def test_larger_caches_take_more_classes(monkeypatch, mebibytes, classes):
    monkeypatch.setattr(tile_sizes, "second_level_bytes", lambda: int(mebibytes * 2**20))
    assert chosen_tiles(Tiles(), "cpu", Sizes(4096, 512, 32_768, *FLOAT32))[1] == classes


def test_one_tile_of_tokens_is_worth_fewer_classes(monkeypatch):
    monkeypatch.setattr(tile_sizes, "second_level_bytes", lambda: 2**22)
    sizes = Sizes(512, 2048, 32_768, *FLOAT32)
    assert chosen_tiles(Tiles(), "cpu", sizes) == (512, 1024)
    assert chosen_tiles(Tiles(), "cpu", sizes._replace(tokens=513))[1] == 2048
    assert chosen_tiles(Tiles(), "cpu", sizes._replace(vocab_size=262_144)) == (128, 2048)


def test_the_machine_says_what_its_caches_are():
    assert 2**17 <= second_level_bytes() <= 2**33


def test_tiles_are_even():
    for count in (1, 7, 100, 512, 513, 600, 1025, 50_257):
        for most in (8, 128, 512, 1024):
            size = even(count, most)
            tiles = -(-count // size)
            assert size <= most
            assert tiles == -(-count // most)
            assert tiles * size < count + 16 * tiles


def test_the_loss_is_the_same_in_uneven_sizes():
    tokens, features, vocab_size = SIZES[1]  # a program that is compiled above
    draw = np.random.default_rng(0)
    hidden, weight = (
        draw.normal(size=(n, features)).astype("float32") / 4 for n in (tokens, vocab_size)
    )
    labels = draw.integers(0, vocab_size, tokens).astype("int32")
    loss, gradients = jax.jit(jax.value_and_grad(linear_softmax_cross_entropy, (0, 1)))(
        hidden, weight, labels
    )
    losses, _, backward = exact_loss(hidden, weight, labels)
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-6)
    for found, wanted in zip(gradients, backward(1 / tokens)[:2], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
