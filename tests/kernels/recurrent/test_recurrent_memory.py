"""What programs of recurrent layers take: memory, steps of padding, and where they lower to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import LSTMParameters, lstm
from jaxnets.kernels.recurrent import xla_rows
from tests.kernels.recurrent.test_recurrent import problem
from tests.recurrence import value_and_gradients


def gradient_memory(layer, batch, time, features, hidden, **options):
    """Temporaries of outputs and gradients, in bytes; cotangents come in as an argument."""
    weights = LSTMParameters(
        *(
            jax.ShapeDtypeStruct(s, jnp.float32)
            for s in ((features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,))
        )
    )

    def step(inputs, weights, d_outputs):
        outputs, pull = jax.vjp(lambda x, w: layer(x, None, w, **options)[0], inputs, weights)
        return outputs, pull(d_outputs)

    inputs = jax.ShapeDtypeStruct((batch, time, features), jnp.float32)
    d_outputs = jax.ShapeDtypeStruct((batch, time, hidden), jnp.float32)
    compiled = jax.jit(step).lower(inputs, weights, d_outputs).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_long_sequences_need_a_twentieth_of_the_memory():
    kept = 4 * 8 * 17_989 * 5 * 128  # gates and c of each step, in float32
    assert gradient_memory(lstm, 8, 18_000, 12, 128, remat=True) * 20 < kept
    # What is chosen, of a prime time, which no chunk divides.
    assert gradient_memory(lstm, 8, 17_989, 12, 128) * 20 < kept


def test_no_carry_is_stacked_without_a_gradient():
    """Inference holds its outputs and one chunk, not the gates or carries of every step."""
    shape = (8, 4000, 12)
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, (12, 512), (128, 512), (512,))]
    compiled = jax.jit(lambda x, *w: lstm(x, None, LSTMParameters(*w))).lower(*shapes).compile()
    outputs = 4 * 8 * 4000 * 128
    assert compiled.memory_analysis().temp_size_in_bytes < outputs / 10


def test_stages_skip_what_is_padding_for_most_rows():
    """Lengths of which the longest is 4 times the mean: at most half of the row-steps are run."""
    batch, time, chunk = 64, 256, 8
    lengths = np.minimum(time, np.random.default_rng(0).exponential(time / 4, batch)).astype(int)
    lengths[0] = time
    counts = xla_rows.row_counts(batch)
    run = 0

    def body(rows, index, rowwise, whole):
        return rowwise, (whole[0] + rows * chunk, jnp.maximum(whole[1], index))

    _, (run, last) = xla_rows.sweep(
        counts, chunk, time, jnp.array(lengths), body, (), (jnp.int32(0), jnp.int32(0)),
        descending=False,
    )  # fmt: skip
    assert lengths.sum() <= run < batch * time / 2
    assert last == time // chunk - 1


@pytest.mark.parametrize("marks", [None, "lengths", "segments"])
def test_lowers_for_accelerators(marks):
    layer, *arrays = problem("lstm", marks, dtype=jnp.float32)
    gradients = jax.jit(functools.partial(value_and_gradients, layer))
    exported = jax.export.export(gradients, platforms=["tpu", "cuda"])(arrays)
    assert exported.platforms == ("tpu", "cuda")
