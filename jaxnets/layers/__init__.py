"""flax.nnx modules: they hold parameters and call one kernel."""

from jaxnets.layers.embedding import Embedding
from jaxnets.layers.look_up import look_up
from jaxnets.layers.output_projection import OutputProjection
from jaxnets.layers.pointwise import PointwiseConv, SeparableConv
from jaxnets.layers.recurrent import GRU, LSTM
from jaxnets.layers.resize import ResizeConv, resize

__all__ = [
    "GRU", "LSTM", "Embedding", "OutputProjection", "PointwiseConv", "ResizeConv", "SeparableConv",
    "look_up", "resize",
]  # fmt: skip
