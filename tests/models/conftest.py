"""What ``fit`` does around its steps by NumPy, which compiles no program for each shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.training import finite, holder, loop
from tests.inputs import on_device


def _is_array_of(kind, leaf):
    return jnp.issubdtype(leaf.dtype, kind)


def _copied(leaf):
    is_key = _is_array_of(jax.dtypes.extended, leaf)
    return jnp.copy(leaf) if is_key else on_device(np.array(leaf))


def _kinds_of(leaf):
    if not _is_array_of(jnp.inexact, leaf):
        return np.zeros(2, bool)
    return np.array([np.isnan(leaf).any(), np.isinf(leaf).any()])


@pytest.fixture(autouse=True, scope="module")
def _cheap_fits():
    """The tests of ``fit`` itself do without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finite, "_kinds", lambda tree: jax.tree.map(_kinds_of, tree))
        for module in (loop, holder):
            patch.setattr(module, "own_copy", lambda tree: jax.tree.map(_copied, tree))
        yield
