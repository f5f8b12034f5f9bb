"""The peers of the exact loss compute it, where they are installed (make peers)."""

import jax
import numpy as np
import pytest

from benchmarks import exact
from tests.near import assert_near


@pytest.mark.parametrize(("peer", "features_first"), [("jax_cce", False), ("tokamax", True)])
def test_a_peer_computes_the_same_loss(peer, features_first):
    pytest.importorskip(peer)
    arrays = exact.problem(64, 32, 4096)
    case = {"jax_cce": exact.jax_cce_case, "tokamax": exact.tokamax_case}[peer](arrays, None)
    value, (d_hidden, d_weight) = case.run()
    d_weight = np.asarray(d_weight).T if features_first else d_weight
    wanted = jax.jit(jax.value_and_grad(exact.naive_loss, (0, 1)))(*arrays)
    assert_near((value, (d_hidden, d_weight)), wanted, 1e-5)
