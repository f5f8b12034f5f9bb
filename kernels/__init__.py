"""Pure, jit-compiled functions with hand-written gradients; they know nothing of Flax."""

from jaxnets.kernels.checked import checked_loss
from jaxnets.kernels.dispatch import compiling_for, explain, xla_only
from jaxnets.kernels.linear_softmax.api import linear_softmax_cross_entropy
from jaxnets.kernels.linear_softmax.divergence import (
    DivergenceAndCrossEntropy,
    Head,
    linear_divergence,
)
from jaxnets.kernels.linear_softmax.fused_update import LinearSoftmaxUpdate, linear_softmax_update
from jaxnets.kernels.linear_softmax.label_rank import LabelRank, linear_label_rank
from jaxnets.kernels.linear_softmax.log_probs import LogProbs, linear_log_probs
from jaxnets.kernels.linear_softmax.sigmoid import linear_sigmoid_cross_entropy
from jaxnets.kernels.linear_softmax.tile_sizes import Tiles
from jaxnets.kernels.linear_softmax.top_k import TopK, linear_top_k
from jaxnets.kernels.linear_softmax.top_k_teacher import TopKTeacher
from jaxnets.kernels.linear_softmax.update_rules import SGD, RowwiseAdagrad
from jaxnets.kernels.losses import LossAndLogSumExp
from jaxnets.kernels.pointwise.api import pointwise_conv
from jaxnets.kernels.pointwise.batch_norm import FoldedBatchNorm, fold_batch_norm
from jaxnets.kernels.pointwise.depthwise import depthwise_conv
from jaxnets.kernels.recurrent.api import Recurrence, gru, lstm
from jaxnets.kernels.recurrent.layers import recurrent_layers
from jaxnets.kernels.recurrent.parameters import GRUParameters, LayerNorm, LSTMParameters
from jaxnets.kernels.rows.dense import add_rows, rows_from_dense, to_dense
from jaxnets.kernels.rows.gather import GatheredRows, gather_rows
from jaxnets.kernels.rows.rows import SparseRows
from jaxnets.kernels.sampled_softmax.api import (
    nce_loss,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.sampled_softmax.candidate_queue import CandidateQueue
from jaxnets.kernels.sampled_softmax.hardest import hardest_samples
from jaxnets.kernels.sampled_softmax.in_batch import (
    ExtraItems,
    in_batch_softmax_cross_entropy,
)
from jaxnets.kernels.sampled_softmax.ranking import bpr_loss, bpr_max_loss, gbce_loss
from jaxnets.kernels.sampled_softmax.scalable import scalable_cross_entropy
from jaxnets.kernels.samplers.draw import draw_samples
from jaxnets.kernels.samplers.in_batch import in_batch_samples
from jaxnets.kernels.samplers.learned_unigram import LearnedUnigram
from jaxnets.kernels.samplers.log_uniform import LogUniform
from jaxnets.kernels.samplers.mixture import Mixture, mixed_samples
from jaxnets.kernels.samplers.samples import Samples
from jaxnets.kernels.samplers.sharded_unigram import ShardedUnigram
from jaxnets.kernels.samplers.streaming_frequency import StreamingFrequency
from jaxnets.kernels.samplers.uniform import Uniform
from jaxnets.kernels.samplers.unigram import Unigram
from jaxnets.kernels.tuning import tune
from jaxnets.kernels.vocab_sharding import VocabSharding

__all__ = [
    "SGD",
    "CandidateQueue",
    "DivergenceAndCrossEntropy",
    "ExtraItems",
    "FoldedBatchNorm",
    "GRUParameters",
    "GatheredRows",
    "Head",
    "LSTMParameters",
    "LabelRank",
    "LayerNorm",
    "LearnedUnigram",
    "LinearSoftmaxUpdate",
    "LogProbs",
    "LogUniform",
    "LossAndLogSumExp",
    "Mixture",
    "Recurrence",
    "RowwiseAdagrad",
    "Samples",
    "ShardedUnigram",
    "SparseRows",
    "StreamingFrequency",
    "Tiles",
    "TopK",
    "TopKTeacher",
    "Uniform",
    "Unigram",
    "VocabSharding",
    "add_rows",
    "bpr_loss",
    "bpr_max_loss",
    "checked_loss",
    "compiling_for",
    "depthwise_conv",
    "draw_samples",
    "explain",
    "fold_batch_norm",
    "gather_rows",
    "gbce_loss",
    "gru",
    "hardest_samples",
    "in_batch_samples",
    "in_batch_softmax_cross_entropy",
    "linear_divergence",
    "linear_label_rank",
    "linear_log_probs",
    "linear_sigmoid_cross_entropy",
    "linear_softmax_cross_entropy",
    "linear_softmax_update",
    "linear_top_k",
    "lstm",
    "mixed_samples",
    "nce_loss",
    "negative_sampling_loss",
    "pointwise_conv",
    "recurrent_layers",
    "rows_from_dense",
    "sampled_softmax_cross_entropy",
    "scalable_cross_entropy",
    "to_dense",
    "tune",
    "xla_only",
]
