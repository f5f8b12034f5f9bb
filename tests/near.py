"""The one comparison of trees of arrays that the kernels' tests make; each has its tolerance."""

import jax
import numpy as np


def assert_near(got, wanted, tolerance: float, size: float = 0.0) -> None:
    """Each array within ``tolerance`` times its largest value, or ``size`` where that is more."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), size))
