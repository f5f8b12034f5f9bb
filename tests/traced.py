"""What a function computes, without computing it."""

import re

import jax
import numpy as np
from flax import nnx


def traced(function, *arguments):
    """The equations of ``function(*arguments)`` and the values that they hold.

    Where they are equal the same is computed. Arguments may be modules.
    """
    graph, state = nnx.split(arguments)
    closed = jax.make_jaxpr(lambda state: function(*nnx.merge(graph, state)))(state)
    equations = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))
    return equations, [np.asarray(constant).tolist() for constant in closed.consts]
