"""The count of what came before, by matmuls, against NumPy's cumulative sum."""

import jax
import numpy as np
import pytest

from jaxnets.kernels.numerics import running_count

COUNT = jax.jit(running_count)


@pytest.mark.parametrize("size", [0, 1, 64, 65, 64**2 + 1])
def test_it_counts_through_several_levels_of_blocks(size):
    flags = np.random.default_rng(size).random(size) < 0.9
    for given in (flags, np.ones_like(flags)):
        found = np.asarray(COUNT(given))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, np.cumsum(given))
