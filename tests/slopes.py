"""Gradients against finite differences, at the price of one program."""

import jax
import jax.numpy as jnp
import numpy as np


def assert_slopes(function, arrays, tolerance, step=1e-5, modes=("rev",)):
    """Of a weighted sum of the results, along one direction; both are drawn, as `check_grads` does.

    ``tolerance``: absolute and relative, on top of what a central difference is off by.
    """
    draw = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(arrays)
    leaves = [np.asarray(leaf) for leaf in leaves]
    direction = [draw.normal(size=leaf.shape).astype(leaf.dtype) for leaf in leaves]

    def weighted(*leaves):
        results = jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves)))
        factors = np.random.default_rng(1)
        return sum((result * factors.normal(size=result.shape)).sum() for result in results)

    @jax.jit
    def program(*leaves):
        value, gradients = jax.value_and_grad(weighted, range(len(leaves)))(*leaves)
        slopes = [sum(jnp.vdot(g, d) for g, d in zip(gradients, direction, strict=True))]
        if "fwd" in modes:
            slopes.append(jax.jvp(weighted, leaves, tuple(direction))[1])
        return value, slopes

    ends = [
        program(*(leaf + sign * step * d for leaf, d in zip(leaves, direction, strict=True)))[0]
        for sign in (1, -1)
    ]
    difference = (float(ends[0]) - float(ends[1])) / (2 * step)
    for slope in program(*leaves)[1]:
        np.testing.assert_allclose(slope, difference, atol=tolerance, rtol=tolerance)


def assert_backward(function, arrays, gradients, cotangents, step=1e-5):
    """Gradients by hand in float64 are the slopes of results by hand; nothing is compiled.

    ``function`` gives the results and what takes their cotangents, as in tests/exact_loss.py.
    """
    draw = np.random.default_rng(0)
    for at, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
        direction = draw.normal(size=array.shape)
        ends = []
        for sign in (1, -1):
            moved = [*arrays[:at], array + sign * step * direction, *arrays[at + 1 :]]
            results = function(*moved)[:-1]
            ends.append(sum((c * r).sum() for c, r in zip(cotangents, results, strict=True)))
        slope = (gradient * direction).sum()
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-7, atol=1e-7)
