"""A recurrent layer's batch over a mesh: what is sent, and that a kernel for TPU may run there."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.scaling import collectives
from jaxnets.kernels import GRUParameters, LSTMParameters, dispatch, gru, lstm
from tests.near import assert_near
from tests.recurrence import by_hand

BATCH, TIME, FEATURES, HIDDEN = 8, 12, 3, 5
SCALARS = 64  # bytes: the loss, and how long the longest row is
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


INPUTS, LENGTHS = normal(BATCH, TIME, FEATURES), np.arange(BATCH) % (TIME + 1)
LSTM = LSTMParameters(normal(FEATURES, 20) / 2, normal(HIDDEN, 20) / 2, normal(20))
GRU = GRUParameters(normal(FEATURES, 15) / 2, normal(HIDDEN, 15) / 2, normal(15), normal(15))


def placed(mesh, parameters, axes="data"):
    own, whole = NamedSharding(mesh, P(axes)), NamedSharding(mesh, P())
    return jax.device_put((INPUTS, parameters, LENGTHS), (own, whole, own))


@pytest.mark.parametrize(("layer", "parameters"), [(lstm, LSTM), (gru, GRU)])
def test_xla_sends_nothing_but_the_parameters_gradients(loops, layer, parameters):
    """Over ``Auto`` axes, where XLA splits the matmuls of all steps: nothing is gathered."""

    def loss(inputs, parameters, lengths):
        outputs = layer(inputs, None, parameters, lengths=lengths, reverse=True).outputs
        return (outputs**2).sum(), outputs

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    arrays = placed(mesh, parameters)
    compiled = gradient.lower(*arrays).compile()
    found = collectives(compiled.as_text())
    assert {kind for kind, _ in found} == {"all-reduce"}
    size = 4 * sum(array.size for array in jax.tree.leaves(parameters))
    assert size <= sum(sent for _, sent in found) <= size + SCALARS
    (d_inputs, _), outputs = compiled(*arrays)
    assert d_inputs.sharding.is_equivalent_to(arrays[0].sharding, 3)
    carry = np.zeros((BATCH, HIDDEN), np.float32)
    whole = INPUTS, (carry, carry) if layer is lstm else carry, parameters
    assert_near(outputs, by_hand(whole, lengths=LENGTHS, reverse=True)[0][0], 1e-5)


@pytest.mark.parametrize(
    ("axes", "kinds", "is_pallas"),
    [
        (("data", "model"), (AxisType.Explicit,) * 2, True),
        ("data", (AxisType.Explicit,) * 2, False),  # the four of a row would do the same
        (("data", "model"), (AxisType.Auto,) * 2, False),
        ("data", (AxisType.Explicit, AxisType.Auto), False),
    ],
)
def test_a_kernel_for_tpu_runs_where_each_device_has_rows_of_its_own(
    monkeypatch, axes, kinds, is_pallas
):
    monkeypatch.setattr(dispatch, "target", lambda: dispatch.Target("tpu", interpret=True))
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=kinds)
    inputs, parameters, lengths = placed(mesh, LSTM, axes)
    outputs = jax.jit(lambda *arrays: lstm(arrays[0], None, arrays[1], lengths=arrays[2]))
    traced = outputs.trace(inputs, parameters, lengths)
    assert ("pallas_call" in str(traced.jaxpr)) == is_pallas
