"""Tiles that a table or the tuner knows for a kind of device: where they are taken, and how far."""

import jax
import numpy as np
import pytest

from jaxnets.kernels import Tiles, compiling_for, linear_softmax_cross_entropy, tuned
from jaxnets.kernels.dispatch import operation_named
from jaxnets.kernels.linear_softmax.tile_sizes import MOST_ROUNDINGS, Sizes, chosen_tiles
from jaxnets.kernels.tuning import candidates

SIZES = Sizes(8192, 4096, 131_072, "bfloat16", "bfloat16")
KNOWN = (1024, 16_384)


def test_they_go_before_the_rule_of_the_platform_and_after_what_is_asked_for():
    assert chosen_tiles(Tiles(), "tpu", SIZES, KNOWN) == KNOWN
    assert chosen_tiles(Tiles(token_tile=64), "tpu", SIZES, KNOWN) == (64, 16_384)
    assert chosen_tiles(Tiles(vocab_tile=512), "tpu", SIZES, KNOWN) == (1024, 512)
    assert chosen_tiles(Tiles(), "cpu", SIZES, KNOWN) == chosen_tiles(Tiles(), "cpu", SIZES)


def test_tiles_of_classes_are_even_off_the_cpu():
    """In whole vectors; 4 tiles of 16,384 would compute a third more than there is."""
    odd = SIZES._replace(vocab_size=50_257)
    assert chosen_tiles(Tiles(), "tpu", odd, KNOWN)[1] == 99 * 128
    assert chosen_tiles(Tiles(), "tpu", odd._replace(vocab_size=10_000))[1] == 27 * 128
    assert chosen_tiles(Tiles(vocab_tile=5000), "tpu", odd, KNOWN)[1] == 5000


def test_a_gradient_is_rounded_no_more_often_than_it_may_be():
    """A row speaks for up to four times as many tokens as it has."""
    tokens, _ = chosen_tiles(Tiles(), "tpu", SIZES._replace(tokens=32_768), KNOWN)
    assert tokens * MOST_ROUNDINGS == 32_768


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, True),
        ({"tiles": Tiles(vocab_tile=12)}, False),
        ({"reduction": "none"}, False),
        ({"return_log_sum_exp": True}, False),
    ],
)
def test_the_one_pass_takes_them(monkeypatch, options, taken):
    """In its program logits of [tokens at a time, classes at a time]."""
    row = tuned.Row("TPU test", {}, "tiled", (16, 24), "compiler, 1.2")
    monkeypatch.setattr(tuned, "look_up", lambda *_: row)
    labels = np.arange(40) % 48

    def loss(hidden, weight):
        return jax.tree.leaves(linear_softmax_cross_entropy(hidden, weight, labels, **options))[
            0
        ].sum()

    with compiling_for("tpu", device_kind="TPU test"):
        traced = jax.make_jaxpr(jax.grad(loss))(np.ones((40, 6)), np.ones((48, 6)))
    assert ("[16,24]" in str(traced)) == taken


def test_the_tuner_tries_others_off_the_cpu():
    operation = operation_named("linear_softmax_cross_entropy")
    tried = {}
    for platform in ("cpu", "tpu"):
        with compiling_for(platform):
            tried[platform] = [tiles for name, tiles in candidates(operation) if name == "tiled"]
    assert tried["cpu"] == [None]
    assert tried["tpu"][0] is None
    assert KNOWN in tried["tpu"]
