"""Optimizers for row-sparse gradients: a step costs the rows it touches, not the table."""

from jaxnets.optim.accumulate import accumulate
from jaxnets.optim.adagrad import adagrad, rowwise_adagrad
from jaxnets.optim.adam import lazy_adam, lazy_adamw, rowwise_adam
from jaxnets.optim.apply import apply_updates
from jaxnets.optim.clipping import clip_by_norm, global_norm
from jaxnets.optim.ftrl import ftrl
from jaxnets.optim.lion import lazy_lion
from jaxnets.optim.offloaded import offload, offloaded_init, offloaded_update
from jaxnets.optim.partition import partition
from jaxnets.optim.sgd import momentum, sgd
from jaxnets.optim.sharded import sharded_init, sharded_update
from jaxnets.optim.transformations import add_decayed_weights, clip_by_global_norm, scale

__all__ = [
    "accumulate", "adagrad", "add_decayed_weights", "apply_updates", "clip_by_global_norm",
    "clip_by_norm", "ftrl", "global_norm", "lazy_adam", "lazy_adamw", "lazy_lion", "momentum",
    "offload", "offloaded_init", "offloaded_update", "partition", "rowwise_adagrad", "rowwise_adam",
    "scale", "sgd", "sharded_init", "sharded_update",
]  # fmt: skip
