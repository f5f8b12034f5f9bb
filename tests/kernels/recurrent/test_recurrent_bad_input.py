"""Bad input to a recurrent layer: the error names the argument, what was given and what is due."""

import pytest

from jaxnets.kernels import GRUParameters, LayerNorm, LSTMParameters, gru, lstm, recurrent_layers
from tests.inputs import on_device, ones

pytestmark = pytest.mark.usefixtures("users_checks")


PARAMETERS = LSTMParameters(ones((3, 8)), ones((2, 8)), ones(8))
GRU_PARAMETERS = GRUParameters(ones((3, 6)), ones((2, 6)), ones(6), ones(6))
INPUTS = ones((2, 4, 3))


def call(**options):
    arguments = {"inputs": INPUTS, "carry": None, "parameters": PARAMETERS, **options}
    return lstm(**arguments)


def changed(**fields):
    return {"parameters": PARAMETERS._replace(**fields)}


CASES = [
    (
        {"inputs": ones((2, 4))},
        ValueError,
        r"inputs must be \[batch, time, features\].*\(2, 4\)",
    ),
    ({"inputs": ones((2, 3, 4))}, ValueError, r"look like \[batch, features, time\]"),
    ({"inputs": ones((2, 4))}, ValueError, "for one sequence.* give batched=False"),
    (
        {"batched": False},
        ValueError,
        r"must be \[time, features\] with batched=False.*leave batched",
    ),
    (
        {"inputs": ones((3, 4)), "batched": False},
        ValueError,
        r"look like \[features, time\]",
    ),
    (
        {"lengths": on_device([1, 2, 3, 4])},
        ValueError,
        r"lengths must be \[batch\] = \(2,\), got shape \(4,\); time first.* is time_first=True",
    ),
    ({"mask": ones((4, 2), bool)}, ValueError, r"mask must be .* = \(2, 4\).*time_first=True"),
    (
        {"mask": ones((2, 4), bool), "time_first": True, "inputs": ones((4, 2, 3))},
        ValueError,
        r"mask must be \[time, batch\] = \(4, 2\)",
    ),
    ({"mask": [[1, 2, 0, 1]] * 2}, ValueError, "mask must hold booleans, or 0 and 1, got 2"),
    ({"mask": [["yes"] * 4] * 2}, TypeError, "mask must be booleans, got dtype"),
    (
        {"mask": ones((2, 4), bool), "segment_ids": ones((2, 4), int)},
        ValueError,
        "segment_ids must be left out with mask",
    ),
    (
        {"masked_outputs": "last"},
        ValueError,
        "masked_outputs must be 'zero' or 'repeat', got 'last'",
    ),
    ({"carry": ones((2, 2))}, TypeError, r"carry must be a pair \(c, h\) for lstm.*gru takes"),
    ({"carry": ones((2, 2, 2))}, TypeError, r"got an array of shape \(2, 2, 2\)"),
    ({"seq_lengths": on_device([1, 2])}, TypeError, "'seq_lengths'; did you mean lengths"),
    ({"sequence_length": on_device([1, 2])}, TypeError, "did you mean lengths"),
    ({"initial_carry": None}, TypeError, "did you mean carry"),
    ({"length": on_device([1, 2])}, TypeError, "did you mean lengths"),
    ({"nonsense": 1}, TypeError, "lstm has no argument 'nonsense'$"),
    ({"truncate_steps": 2.0}, TypeError, "truncate_steps must be an integer, got 2.0"),
    ({"inputs": ones((2, 4, 3), int)}, TypeError, "inputs must be floating point, got int32"),
    ({"carry": (ones((2, 2)), ones((1, 2)))}, ValueError, r"carry\[1\].*= \(2, 2\)"),
    ({"carry": (ones((2, 2), int), ones((2, 2)))}, TypeError, r"carry\[0\].*int32"),
    (changed(input_kernel=ones((3, 7))), ValueError, r"\[features, 4 \* hidden\].*\(3, 7\)"),
    (changed(input_kernel=ones((8, 3))), ValueError, "it looks transposed"),
    (changed(recurrent_kernel=ones((3, 8))), ValueError, r"recurrent_kernel.*\(2, 8\)"),
    (changed(bias=ones(7)), ValueError, r"bias must be .* = \(8,\)"),
    (changed(projection=ones((3, 2))), ValueError, r"projection must be .* = \(2, 2\)"),
    (changed(peepholes=ones((2, 2))), ValueError, r"peepholes must be .* = \(3, 2\)"),
    (
        changed(layer_norm=LayerNorm(*(ones(8),) * 4)),
        ValueError,
        r"layer_norm.memory must be .* = \(2,\)",
    ),
    (
        changed(peepholes=ones((3, 2)), layer_norm=LayerNorm(*(ones(8),) * 4)),
        ValueError,
        "must not both be given",
    ),
    ({"lengths": on_device([1.0, 2.0])}, TypeError, "lengths must be integers, got dtype float32"),
    ({"lengths": on_device([1])}, ValueError, r"lengths must be \[batch\] = \(2,\)"),
    ({"lengths": on_device([1, 5])}, ValueError, r"\[0, time\] = \[0, 4\], got 5"),
    ({"lengths": on_device([-1, 2])}, ValueError, "got -1"),
    ({"segment_ids": ones((2, 3), int)}, ValueError, r"segment_ids must be .* = \(2, 4\)"),
    (
        {"segment_ids": ones((2, 4))},
        TypeError,
        "segment_ids must be integers, got dtype float32",
    ),
    (
        {"segment_ids": ones((2, 4), int), "lengths": on_device([1, 2])},
        ValueError,
        "lengths must be left out with segment_ids",
    ),
    ({"recurrent_dropout": 1.0}, ValueError, r"recurrent_dropout must lie in \[0, 1\), got 1.0"),
    ({"recurrent_dropout": 0.5}, ValueError, "key must be given"),
    ({"truncate_steps": 0}, ValueError, "truncate_steps must be at least 1 step, got 0"),
    (
        {"truncate_steps": 2, "chunk_size": 2},
        ValueError,
        "chunk_size must be left out with truncate_steps",
    ),
    ({"implementation": "fast"}, ValueError, "implementation must be None or one of.*'fast'"),
    ({"implementation": "cudnn"}, ValueError, "'cudnn' cannot run here: cuDNN needs an NVIDIA GPU"),
    ({"implementation": "pallas"}, ValueError, "'pallas' cannot run here: .* need a GPU or TPU"),
    ({"implementation": "reference", "chunk_size": 2}, ValueError, "no remat, no chunk_size"),
]


@pytest.mark.parametrize(("options", "error", "message"), CASES)
def test_lstm(options, error, message):
    with pytest.raises(error, match=message):
        call(**options)


def test_gru():
    with pytest.raises(ValueError, match=r"carry must be .* = \(2, 2\), got shape \(2, 3\)"):
        gru(INPUTS, ones((2, 3)), GRU_PARAMETERS)
    with pytest.raises(TypeError, match=r"carry must be one array h for gru.*a pair \(c, h\)"):
        gru(INPUTS, (ones((2, 2)), ones((2, 2))), GRU_PARAMETERS)
    with pytest.raises(TypeError, match="gru has no argument 'seq_lengths'; did you mean lengths"):
        gru(INPUTS, None, GRU_PARAMETERS, seq_lengths=[1, 2])
    with pytest.raises(ValueError, match="recurrent_bias"):
        gru(INPUTS, None, GRU_PARAMETERS._replace(recurrent_bias=ones(3)))


def test_layers():
    with pytest.raises(ValueError, match=r"layers must hold .* got \[3\]"):
        recurrent_layers(INPUTS, None, [[PARAMETERS] * 3])
    with pytest.raises(ValueError, match="one carry for each layer"):
        recurrent_layers(INPUTS, [[None, None]], [[PARAMETERS]])
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1"):
        recurrent_layers(INPUTS, None, [[PARAMETERS]], dropout=1.0)
    with pytest.raises(ValueError, match="key must be given"):
        recurrent_layers(INPUTS, None, [[PARAMETERS]], dropout=0.5)
    with pytest.raises(ValueError, match="key must be given with dropout, input_dropout"):
        recurrent_layers(INPUTS, None, [[PARAMETERS]], input_dropout=0.5)
    with pytest.raises(ValueError, match=r"input_dropout must lie in \[0, 1\), got -1"):
        recurrent_layers(INPUTS, None, [[PARAMETERS]], input_dropout=-1.0)
    with pytest.raises(ValueError, match=r"merge_mode must be one of .*'ave'.*, got 'add'"):
        recurrent_layers(INPUTS, None, [[PARAMETERS]], merge_mode="add")
    with pytest.raises(TypeError, match="lstm has no argument 'reset_after'"):
        recurrent_layers(INPUTS, None, [[PARAMETERS]], reset_after=False)
