"""``checked_loss`` around the exact loss: what it leaves out, and split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import VocabSharding, checked_loss, linear_softmax_cross_entropy
from tests.inputs import changed
from tests.kernels.linear_softmax.test_exact_edges import near, problem


@pytest.mark.parametrize("dtype", ["uint8", pytest.param("int32", marks=pytest.mark.smoke)])
def test_checked_leaves_out_what_the_loss_does(dtype):
    hidden, weight, bias, labels = problem()
    labels = np.array(changed(labels, 0, 200), dtype)
    hidden = changed(hidden, 0, np.nan)
    loss = jax.jit(
        checked_loss(linear_softmax_cross_entropy), static_argnames=("ignore_index", "reduction")
    )
    for options in ({"ignore_index": 200}, {"token_weights": changed(np.ones(6), 0, 0)}):
        error, value = loss(hidden=hidden, weight=weight, bias=bias, labels=labels, **options)
        error.throw()
        assert jnp.isfinite(value)
    assert "got 200" in loss(hidden, weight, labels=labels, bias=bias)[0].get()
    with pytest.raises(TypeError, match="missing here: labels, weight"):
        checked_loss(lambda *a: a)(hidden)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_checked_around_a_sharded_loss(kind):
    kinds = (getattr(jax.sharding.AxisType, kind),)
    sharding = VocabSharding(jax.make_mesh((4,), ("vocab",), kinds), "vocab")
    hidden, weight, bias, labels = problem()
    loss = checked_loss(linear_softmax_cross_entropy)

    @jax.jit
    def jitted(hidden, weight, bias, labels):
        return loss(hidden, weight, labels, bias=bias, sharding=sharding)

    error, value = jitted(hidden, weight, bias, labels)
    error.throw()
    near(value, linear_softmax_cross_entropy(hidden, weight, labels, bias=bias))
    error, _ = jitted(hidden, weight, bias, changed(labels, 1, -3))
    assert "labels must lie in [0, 32), got -3" in error.get()
