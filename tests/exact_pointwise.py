"""The 1x1 convolution and its gradients in float64 and NumPy, which compiles nothing."""

import math
from functools import partial

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    """Its tanh form, and its slope."""
    inner, slope = x + 0.044715 * x**3, 1 + 3 * 0.044715 * x**2
    scale = (2 / np.pi) ** 0.5
    wave = np.tanh(scale * inner)
    return x * 0.5 * (1 + wave), 0.5 * (1 + wave) + x * 0.5 * (1 - wave**2) * scale * slope


def gelu_exact(x):
    """x times the normal distribution's share below x, and its slope."""
    share = np.vectorize(math.erfc)(-x / 2**0.5) / 2
    return x * share, share + x * np.exp(-x * x / 2) / (2 * np.pi) ** 0.5


# Of each sum, its activation and the slope there.
BY_HAND = {
    None: lambda x: (x, np.ones_like(x)),
    "relu": lambda x: (np.maximum(x, 0), (x > 0) * 1.0),
    "sigmoid": lambda x: (sigmoid(x), sigmoid(x) * (1 - sigmoid(x))),
    "tanh": lambda x: (np.tanh(x), 1 - np.tanh(x) ** 2),
    "silu": lambda x: (x * sigmoid(x), sigmoid(x) * (1 + x * (1 - sigmoid(x)))),
    "gelu": gelu,
    "gelu_exact": gelu_exact,
}


def by_hand(arrays, waves, groups=1, strides=1, activation=None):
    """The outputs of a residual convolution, and gradients of a scalar of them.

    ``waves`` gives the derivatives of that scalar, of the outputs.
    """
    inputs, kernel, bias, residual = (np.asarray(a, np.float64) for a in arrays)
    taken = (slice(None), *(slice(None, None, strides),) * (inputs.ndim - 2))
    groups_of = partial(np.split, indices_or_sections=groups, axis=-1)
    parts = list(zip(groups_of(inputs[taken]), groups_of(kernel), strict=True))
    sums = np.concatenate([x @ w for x, w in parts], -1) + bias + residual
    outputs, slope = BY_HAND[activation](sums)
    d_sums = waves(outputs) * slope
    d_parts = list(zip(parts, groups_of(d_sums), strict=True))
    d_inputs = np.zeros_like(inputs)
    d_inputs[taken] = np.concatenate([d @ w.T for (_, w), d in d_parts], -1)
    axes = tuple(range(sums.ndim - 1))
    d_kernel = [np.tensordot(x, d, (axes, axes)) for (x, _), d in d_parts]
    return outputs, d_inputs, np.concatenate(d_kernel, -1), d_sums.sum(axes), d_sums
