"""Second derivatives of what a kernel computes, by a plain function that equals it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax


def first_by(fast: Callable, plain: Callable, constants: Any, *arguments: Any) -> Any:
    """``fast(constants, *arguments)``: its own value and gradient, second derivatives of ``plain``.

    A kernel's backward pass is a kernel too, which JAX cannot differentiate. As a function of the
    arguments it is ``plain``'s gradient, and is differentiated as that.

    Args:
      fast: has first derivatives in reverse mode; closes over no array.
      plain: equal to ``fast`` up to rounding, with second derivatives; closes over no array.
      constants: a pytree of arrays that have no gradient.
      *arguments: pytrees of floating point arrays.
    """
    structure: Any = None  # of what the kernel keeps for its backward pass: the same in each trace

    def run(constants, *arguments):
        nonlocal structure
        results, backward = jax.vjp(partial(fast, constants), *arguments)
        kept, structure = jax.tree.flatten(backward)
        return results, kept

    # A derivative of the gradient goes through the forward pass too: so that has derivatives by
    # rule, of which what is kept has no part. Its gradient is the arguments', as `plain` has it.
    forward = jax.custom_vjp(run)

    def forward_and_arguments(constants, *arguments):
        return run(constants, *arguments), (constants, arguments)

    def forward_backward(residuals, cotangents):
        constants, arguments = residuals
        return None, *jax.vjp(partial(plain, constants), *arguments)[1](cotangents[0])

    forward.defvjp(forward_and_arguments, forward_backward)

    @jax.custom_vjp
    def gradient(constants, arguments, kept, cotangents):
        return jax.tree.unflatten(structure, kept)(cotangents)

    def gradient_and_arguments(constants, arguments, kept, cotangents):
        return gradient(constants, arguments, kept, cotangents), (constants, arguments, cotangents)

    def gradient_backward(residuals, d_gradient):
        constants, *differentiated = residuals

        def plain_gradient(arguments, cotangents):
            return jax.vjp(partial(plain, constants), *arguments)[1](cotangents)

        of_arguments, of_cotangents = jax.vjp(plain_gradient, *differentiated)[1](d_gradient)
        return None, of_arguments, None, of_cotangents

    gradient.defvjp(gradient_and_arguments, gradient_backward)

    @jax.custom_vjp
    def value(constants, *arguments):
        return run(constants, *arguments)[0]

    def value_and_kept(constants, *arguments):
        results, kept = forward(constants, *arguments)
        return results, (constants, arguments, kept)

    def value_backward(residuals, cotangents):
        return None, *gradient(*residuals, cotangents)

    value.defvjp(value_and_kept, value_backward)
    return value(constants, *arguments)
