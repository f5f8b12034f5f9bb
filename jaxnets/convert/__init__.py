"""Weights from and to other libraries' layouts, exactly: nothing is computed but sums of biases."""

from jaxnets.convert.carries import (
    carries_from_keras,
    carries_from_torch,
    carries_to_keras,
    carries_to_torch,
)
from jaxnets.convert.dense_conv import conv_to_dense, convolutionalize, dense_to_conv
from jaxnets.convert.flax_cells import (
    gru_from_flax,
    gru_to_flax,
    gru_to_nnx,
    lstm_from_flax,
    lstm_from_flax_optimized,
    lstm_to_flax,
    lstm_to_flax_optimized,
)
from jaxnets.convert.keras import gru_from_keras, gru_to_keras, lstm_from_keras, lstm_to_keras
from jaxnets.convert.torch import gru_from_torch, gru_to_torch, lstm_from_torch, lstm_to_torch

__all__ = [
    "carries_from_keras", "carries_from_torch", "carries_to_keras", "carries_to_torch",
    "conv_to_dense", "convolutionalize", "dense_to_conv", "gru_from_flax", "gru_from_keras",
    "gru_from_torch", "gru_to_flax", "gru_to_keras", "gru_to_nnx", "gru_to_torch", "lstm_from_flax",
    "lstm_from_flax_optimized", "lstm_from_keras", "lstm_from_torch", "lstm_to_flax",
    "lstm_to_flax_optimized", "lstm_to_keras", "lstm_to_torch",
]  # fmt: skip
