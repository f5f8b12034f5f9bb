"""Pure, jit-compiled functions with hand-written gradients; they know nothing of Flax."""

from jaxnets.kernels.dispatch import compiling_for, explain
from jaxnets.kernels.lstm.layers import recurrent_layers
from jaxnets.kernels.lstm.parameters import GRUParameters, LayerNorm, LSTMParameters
from jaxnets.kernels.lstm.recurrent import gru, lstm
from jaxnets.kernels.pointwise.convolution import pointwise_conv
from jaxnets.kernels.pointwise.depthwise import depthwise_conv
from jaxnets.kernels.pointwise.folding import fold_batch_norm
from jaxnets.kernels.softmax.checked import checked
from jaxnets.kernels.softmax.full import linear_softmax_cross_entropy
from jaxnets.kernels.softmax.in_batch import in_batch, in_batch_softmax_cross_entropy
from jaxnets.kernels.softmax.learned_unigram import LearnedUnigram
from jaxnets.kernels.softmax.rows import Rows
from jaxnets.kernels.softmax.sampled import (
    nce_loss,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.softmax.samplers import LogUniform, Uniform, sample
from jaxnets.kernels.softmax.samples import Samples
from jaxnets.kernels.softmax.sharded import sharded_linear_softmax_cross_entropy
from jaxnets.kernels.softmax.sharded_sampled import (
    sharded_gather_rows,
    sharded_sampled_softmax_cross_entropy,
)
from jaxnets.kernels.softmax.sharded_sampler import ShardedUnigram
from jaxnets.kernels.softmax.sparse import add_rows, gather_rows, rows_from_dense, to_dense
from jaxnets.kernels.softmax.top_k import linear_top_k
from jaxnets.kernels.softmax.unigram import Unigram
from jaxnets.kernels.softmax.vocab_sharding import VocabSharding
from jaxnets.kernels.tuning import tune

__all__ = [
    "GRUParameters", "LSTMParameters", "LayerNorm", "LearnedUnigram", "LogUniform", "Rows",
    "Samples", "ShardedUnigram", "Uniform", "Unigram", "VocabSharding", "add_rows", "checked",
    "compiling_for", "depthwise_conv", "explain", "fold_batch_norm", "gather_rows", "gru",
    "in_batch", "in_batch_softmax_cross_entropy", "linear_softmax_cross_entropy", "linear_top_k",
    "lstm", "nce_loss", "negative_sampling_loss", "pointwise_conv", "recurrent_layers",
    "rows_from_dense", "sample", "sampled_softmax_cross_entropy", "sharded_gather_rows",
    "sharded_linear_softmax_cross_entropy", "sharded_sampled_softmax_cross_entropy", "to_dense",
    "tune",
]  # fmt: skip
