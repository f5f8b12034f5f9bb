"""Sequences of unequal length: buckets, packed rows, and steps that compile once a bucket."""

from jaxnets.sequences.boundaries import (
    boundaries_every,
    optimal_boundaries,
    optimal_pair_boundaries,
    quantile_boundaries,
)
from jaxnets.sequences.buckets import bucket_plan
from jaxnets.sequences.compiled import bucketed_jit
from jaxnets.sequences.masks import (
    conv_lengths,
    last_step,
    length_mask,
    masked_accuracy,
    masked_max,
    masked_mean,
)
from jaxnets.sequences.packing import Packed, pack, pack_arrays
from jaxnets.sequences.padding import Batch, pad_batch
from jaxnets.sequences.plan import Plan, Shape
from jaxnets.sequences.source import BatchSource

__all__ = [
    "Batch", "BatchSource", "Packed", "Plan", "Shape", "boundaries_every", "bucket_plan",
    "bucketed_jit", "conv_lengths", "last_step", "length_mask", "masked_accuracy", "masked_max",
    "masked_mean", "optimal_boundaries", "optimal_pair_boundaries", "pack", "pack_arrays",
    "pad_batch", "quantile_boundaries",
]  # fmt: skip
