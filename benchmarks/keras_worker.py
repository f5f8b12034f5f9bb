"""One LSTM or GRU of Keras, forward and backward, run each time a line comes in.

See ``recurrent_peers.py``.
"""

from __future__ import annotations

import sys

import keras
import numpy as np

from benchmarks.workers import answer


def compiled_step(kind: str, batch: int, time: int, features: int, hidden: int):
    """A function that runs one step and returns when it is done."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(batch, time, features)).astype(np.float32)
    cotangent = rng.normal(size=(batch, time, hidden)).astype(np.float32)
    # A GRU resets after the matmul by default, as PyTorch's and flax'.
    layer = getattr(keras.layers, kind)(hidden, return_sequences=True)
    layer.build(inputs.shape)
    if keras.backend.backend() == "jax":
        import jax

        other = [variable.value for variable in layer.non_trainable_variables]

        def loss(weights, inputs):
            outputs, _ = layer.stateless_call(weights, other, inputs)
            return (outputs * cotangent).sum()

        gradient = jax.jit(jax.grad(loss, (0, 1)))
        weights = [variable.value for variable in layer.trainable_variables]
        return lambda: jax.block_until_ready(gradient(weights, inputs))
    import tensorflow as tf

    constant = tf.constant(inputs)

    @tf.function
    def step(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(layer(inputs) * cotangent)
        return tape.gradient(loss, [inputs, *layer.trainable_variables])

    return lambda: [gradient.numpy() for gradient in step(constant)]


if __name__ == "__main__":
    answer(compiled_step(sys.argv[1], *map(int, sys.argv[2:])))
