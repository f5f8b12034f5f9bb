"""Writes recurrent.npz: what PyTorch's and Keras's own LSTM and GRU give, weights included.

Run by hand where both are installed (``make peers``); the tests read the file.
"""

from pathlib import Path

import keras
import numpy as np
import torch

BATCH, TIME, FEATURES, HIDDEN = 4, 7, 3, 5
LENGTHS = np.array([7, 1, 4, 6])


def torch_arrays(kind, inputs, **options):
    """Two bidirectional layers over packed sequences: weights, outputs, gradients of a sum."""
    torch.manual_seed(0)
    layer = getattr(torch.nn, kind)(
        FEATURES, HIDDEN, num_layers=2, bidirectional=True, batch_first=True, **options
    ).double()
    x = torch.from_numpy(inputs).requires_grad_()
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, torch.from_numpy(LENGTHS), batch_first=True, enforce_sorted=False
    )
    outputs, last = layer(packed)
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
    hidden = last[0] if kind == "LSTM" else last
    (torch.sin(outputs).sum() + hidden.square().sum()).backward()
    arrays = {"outputs": outputs, "hidden": hidden, "d_inputs": x.grad}
    if kind == "LSTM":
        arrays["memory"] = last[1]
    for name, parameter in layer.named_parameters():
        arrays[f"weights/{name}"], arrays[f"gradients/{name}"] = parameter, parameter.grad
    return {name: array.detach().numpy() for name, array in arrays.items()}


def keras_arrays(kind, inputs):
    """One layer with a mask on the right, as Keras has it."""
    keras.utils.set_random_seed(0)
    layer = getattr(keras.layers, kind)(
        HIDDEN, return_sequences=True, return_state=True, zero_output_for_mask=True,
        bias_initializer="random_normal",
    )  # fmt: skip
    mask = np.arange(TIME) < LENGTHS[:, None]
    outputs, *state = layer(inputs.astype(np.float32), mask=mask)
    names = ["outputs", "hidden", "memory"]
    arrays = {
        name: np.asarray(array) for name, array in zip(names, [outputs, *state], strict=False)
    }
    return arrays | {f"weights/{i}": array for i, array in enumerate(layer.get_weights())}


def keras_bidirectional(inputs):
    """Two layers, each a Bidirectional whose directions are added, and their last states."""
    keras.utils.set_random_seed(0)
    outputs, arrays = inputs.astype(np.float32), {}
    for number in range(2):
        layer = keras.layers.Bidirectional(
            keras.layers.LSTM(
                HIDDEN, return_sequences=True, return_state=True, bias_initializer="random_normal"
            ),
            merge_mode="sum",
        )
        outputs, *states = layer(outputs)
        arrays |= {f"states/{number}/{i}": np.asarray(array) for i, array in enumerate(states)}
        arrays |= {f"weights/{number}/{i}": a for i, a in enumerate(layer.get_weights())}
    return arrays | {"outputs": np.asarray(outputs)}


if __name__ == "__main__":
    inputs = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES))
    inputs[np.arange(TIME) >= LENGTHS[:, None]] = 0
    cases = {
        "torch_lstm": torch_arrays("LSTM", inputs),
        "torch_projection": torch_arrays("LSTM", inputs, proj_size=2),
        "torch_gru": torch_arrays("GRU", inputs),
        "keras_lstm": keras_arrays("LSTM", inputs),
        "keras_gru": keras_arrays("GRU", inputs),
        "keras_bidirectional": keras_bidirectional(inputs),
    }
    arrays = {f"{case}/{n}": a for case, named in cases.items() for n, a in named.items()}
    np.savez_compressed(
        Path(__file__).with_name("recurrent.npz"), inputs=inputs, lengths=LENGTHS, **arrays
    )
