"""What a function makes on the way without ``jit``, at the price of one program."""

import jax
import numpy as np
from flax import nnx
from jax.extend.core import Literal


def every_number(function, *arguments):
    """The results of ``function(*arguments)``, of which no array on the way is NaN.

    Without ``jit`` each operation is a program of its own, and ``jax_debug_nans`` looks at its
    results. Here they are the results of one program. What has a ``jit`` of its own, or is a loop,
    is one operation, here as there.
    """
    graph, state = nnx.split(arguments)

    def results_of(state):
        return function(*nnx.merge(graph, state))

    closed, shape = jax.make_jaxpr(results_of, return_shape=True)(state)

    @jax.jit
    def program(*leaves):
        numbers = []
        results = _run(closed.jaxpr, closed.consts, leaves, numbers)
        return results, numbers

    results, numbers = program(*jax.tree.leaves(state))
    assert not any(np.isnan(np.asarray(number, np.float64)).any() for number in numbers)
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def _run(jaxpr, constants, arguments, numbers):
    """Evaluates ``jaxpr``, and adds what each equation makes to ``numbers``."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs, inner = map(read, equation.invars), equation.params.get("call_jaxpr")
        if inner is not None:  # functions with a rule of their own, where nothing is derived
            outputs = _run(inner.jaxpr, inner.consts, inputs, numbers)
        else:
            options = equation.primitive.get_bind_params(equation.params)
            outputs = equation.primitive.bind(*inputs, **options)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
            numbers += [o for o in outputs if jax.numpy.issubdtype(o.dtype, jax.numpy.floating)]
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(variable) for variable in jaxpr.outvars]
