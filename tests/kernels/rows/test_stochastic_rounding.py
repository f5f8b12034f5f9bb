"""Sums that are rounded to bfloat16 at random: right on average, and nothing else is touched."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxnets import optim
from jaxnets.kernels import SparseRows

COUNT = 1 << 14
EPS = 2.0**-7  # of bfloat16, from 1 to the next


def test_rounding_at_random():
    """Three tests by the normal distribution, each a false alarm in 10^6 runs."""
    values = np.array([1.0, -1.0, 1.0, 1.0], np.float32)
    parts = np.array([0.3, -0.3, 1.0, 0.0], np.float32)  # of EPS, to be added
    start = {
        "table": np.tile(values, (COUNT, 1)).astype(jnp.bfloat16),
        "dense": np.tile(values, (COUNT, 1)).astype(jnp.bfloat16),
        "float32": np.ones((COUNT, 4), np.float32),
        "ends": np.array([np.nan, np.inf, -np.inf, 0.0], jnp.bfloat16),
    }
    moves = np.tile(EPS * parts, (COUNT, 1)).astype(np.float32)
    updates = {
        "table": SparseRows(np.arange(COUNT), moves),
        "dense": moves,
        "float32": moves,
        "ends": np.zeros(4, np.float32),
    }

    @jax.jit
    def run(start, updates, key):
        def step(table, key):
            rows = SparseRows(jnp.arange(COUNT, dtype=jnp.int32), jnp.full((COUNT, 4), EPS / 32))
            return optim.apply_updates(table, rows, key=key), None

        many, _ = jax.lax.scan(step, start["table"], jax.random.split(key, 200))
        once = optim.apply_updates(start, updates, key=key)
        return once, many, optim.apply_updates(start, updates)

    once, many, nearest = run(start, updates, jax.random.key(0))
    limit = stats.norm.isf(1e-6 / 2)
    for name in ("table", "dense"):
        found = np.asarray(once[name], np.float32)
        ups = np.abs((found - values) / EPS)
        assert set(np.unique(ups)) == {0.0, 1.0}
        assert (ups[:, 2] == 1).all()  # what bfloat16 has is as it is
        assert (ups[:, 3] == 0).all()
        chance = float(np.float32(1 + EPS * parts[0]) - 1) / EPS
        deviation = (chance * (1 - chance) / (2 * COUNT)) ** 0.5
        assert abs(ups[:, :2].mean() - chance) < limit * deviation
    np.testing.assert_array_equal(once["float32"], nearest["float32"])
    ends = (np.asarray(tree["ends"], np.float32) for tree in (once, start))
    np.testing.assert_array_equal(*ends)
    assert once["table"].dtype == jnp.bfloat16
    # 200 updates of EPS / 32, of which the nearest number keeps none: each of 1/32 (31/32) EPS^2.
    drift = np.asarray(many, np.float32)[:, 0] - 1
    deviation = EPS * (200 / 32 * 31 / 32 / COUNT) ** 0.5
    assert abs(drift.mean() - 200 * EPS / 32) < limit * deviation
