"""Gradients in NumPy, which compiles nothing: each array remembers what it was made of.

Every operation is that of the complex numbers too: the imaginary part of a gradient at ``x + 1e-30j
v``, by 1e-30, is its derivative along ``v``, to the last digit.
"""

import jax
import numpy as np

STEP = 1e-30


class Tracked:
    """An array, and for each that it was made of, how its gradient goes back there."""

    def __init__(self, array, *parents):
        self.array, self.parents, self.gradient = array, parents, 0.0

    def __add__(self, other):
        return Tracked(self.array + array_of(other), (self, _same), (other, _same))

    def __sub__(self, other):
        return self + other * -1.0

    def __mul__(self, other):
        a, b = self.array, array_of(other)
        return Tracked(a * b, (self, lambda d: d * b), (other, lambda d: d * a))

    def __matmul__(self, other):
        a, b = self.array, array_of(other)
        return Tracked(a @ b, (self, lambda d: d @ b.T), (other, lambda d: a.T @ d))

    def __getitem__(self, index):
        def back(d):
            whole = np.zeros(self.array.shape, d.dtype)
            whole[index] = d
            return whole

        return Tracked(self.array[index], (self, back))

    def split(self, count):
        """Equal parts of the last axis."""
        width = self.array.shape[-1] // count
        return [self[..., i * width : (i + 1) * width] for i in range(count)]

    def mean(self):
        """Over the last axis, which stays."""
        size = self.array.shape[-1]
        ones = np.ones(self.array.shape)
        return Tracked(self.array.mean(-1, keepdims=True), (self, lambda d: d * ones / size))


def array_of(value):
    return value.array if isinstance(value, Tracked) else value


def _same(d):
    return d


def _mapped(x, value, slope):
    return Tracked(value, (x, lambda d: d * slope))


def tanh(x):
    value = np.tanh(x.array)
    return _mapped(x, value, 1 - value * value)


def sigmoid(x):
    value = 1 / (1 + np.exp(-x.array))
    return _mapped(x, value, value * (1 - value))


def normalize(x):
    """(x - mean) / sqrt(variance + 1e-5) over the last axis."""
    centered = x - x.mean()
    variance = (centered * centered).mean().array + 1e-5
    root = _mapped((centered * centered).mean(), variance**-0.5, -0.5 * variance**-1.5)
    return centered * root


def stack(values, axis):
    arrays = np.stack([value.array for value in values], axis)
    return Tracked(
        arrays, *((value, lambda d, i=i: d.take(i, axis)) for i, value in enumerate(values))
    )


def concatenate(values):
    """Along the last axis."""
    ends = np.cumsum([value.array.shape[-1] for value in values])
    return Tracked(
        np.concatenate([value.array for value in values], -1),
        *(
            (value, lambda d, end=end, value=value: d[..., end - value.array.shape[-1] : end])
            for end, value in zip(ends, values, strict=True)
        ),
    )


def tracked(tree):
    """Each array of ``tree``, in float64 or complex128."""
    return jax.tree.map(
        lambda a: Tracked(np.asarray(a, complex if np.iscomplexobj(a) else float)), tree
    )


def gradients(results, cotangents, wanted):
    """What ``cotangents`` of the leaves of ``results`` are of the leaves of ``wanted``."""
    order, seen, todo = [], set(), [(leaf, False) for leaf in jax.tree.leaves(results)]
    while todo:  # each after all that it was made of
        node, done = todo.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            todo.append((node, True))
            todo += [(parent, False) for parent, _ in node.parents if isinstance(parent, Tracked)]
    for node, d in zip(jax.tree.leaves(results), jax.tree.leaves(cotangents), strict=True):
        node.gradient = node.gradient + d
    for node in reversed(order):
        for parent, back in node.parents:
            if isinstance(parent, Tracked) and np.ndim(node.gradient):
                d = back(node.gradient)
                parent.gradient = parent.gradient + _summed(d, parent.array.shape)
    return jax.tree.map(lambda node: node.gradient + np.zeros(node.array.shape), wanted)


def _summed(d, shape):
    """Over what was broadcast."""
    d = d.sum(tuple(range(d.ndim - len(shape))))
    return d.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
