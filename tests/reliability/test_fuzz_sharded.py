"""Split over devices, of any shape, dtype or size: the right numbers, or an error that names an
argument; see ``fuzzing.py``."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from jaxnets.kernels import Tiles, gather_rows, linear_softmax_cross_entropy
from tests.inputs import on_device
from tests.reliability.fuzzing import (
    EXAMPLES,
    array,
    fuzzed,
    holds,
    mixed,
    outcome,
    plain_full,
    projections,
    spoiled,
    tables,
)
from tests.sharding.split import SHARDINGS, make_mesh

pytestmark = pytest.mark.usefixtures("users_checks")


def split_loss(name):
    """A loss for each token, split as ``SHARDINGS`` has it by that name."""
    return partial(
        linear_softmax_cross_entropy,
        reduction="none", tiles=Tiles(vocab_tile=16), sharding=SHARDINGS[name](make_mesh()),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["vocab and tokens", "vocab over all"])
def test_sharded_softmax(name):
    """Sizes that do not divide the devices are refused, by name."""

    @fuzzed(spoiled(projections()), EXAMPLES // 2)
    def run(arguments):
        holds(split_loss(name), plain_full, arguments, 7)

    run()


@st.composite
def splittable(draw):
    """Projections whose sizes do divide eight devices."""
    arguments, mix = draw(projections()), draw(mixed((2, 6), bias=(False, True)))
    tokens, vocab_size = (8 * size for size in mix["sizes"])
    features, dtype = arguments["weight"].shape[1], arguments["hidden"].dtype
    return {
        **arguments,
        "hidden": array(draw, tokens, 3, features, dtype=dtype),
        "weight": array(draw, vocab_size, features, dtype=dtype, seed=10),
        "bias": array(draw, vocab_size, seed=20) if mix["bias"] else None,
        "labels": on_device(np.random.default_rng(tokens).integers(0, vocab_size, (tokens, 3))),
    }


@fuzzed(spoiled(splittable()), EXAMPLES // 2)
def test_sharded_softmax_of_sizes_that_divide(arguments):
    holds(split_loss("vocab and tokens"), plain_full, arguments, 7)


@fuzzed(spoiled(tables()), EXAMPLES // 2)
def test_sharded_rows(arguments):
    sharding = SHARDINGS["vocab only"](make_mesh())
    arguments["tables"] = on_device(arguments["tables"], np.float32)
    ids = arguments["ids"]
    assume(arguments["tables"].ndim and (np.asarray(ids) < arguments["tables"].shape[0]).all())

    @jax.jit
    def read(tables, ids):
        _, rows, local = gather_rows(tables, ids, sharding=sharding)
        return rows[local]

    got, message = outcome(read, arguments)
    if message is not None:  # a table of no multiple of four rows is a vocab that does not divide
        assert any(name in message for name in ("tables", "ids", "vocab")), message
        return
    np.testing.assert_array_equal(got, np.asarray(arguments["tables"])[np.asarray(ids)])
