"""Optimisers for row-sparse gradients: a step costs the rows it touches, not the table."""

from jaxnets.optim.partition import partition
from jaxnets.optim.rows import adagrad, apply_updates, lazy_adam, momentum, rowwise_adagrad, sgd

__all__ = [
    "adagrad", "apply_updates", "lazy_adam", "momentum", "partition", "rowwise_adagrad", "sgd",
]  # fmt: skip
