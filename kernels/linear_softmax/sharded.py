"""The exact loss with its vocabulary split over the devices of a mesh: what is sent.

Each device computes on its own classes. Over the wire go, for a token,

- forward, along the axes of the vocabulary: a maximum, a sum of exponentials and a label's logit;
- backward, along the same: the gradient of its hidden state.

That does not depend on the size of the vocabulary. Where the tokens are split over an axis of their
own, the gradient of a device's classes is summed along it, as data parallelism must for a dense
gradient; with the vocabulary split over all axes of the mesh there is no such sum, and nothing that
grows with the vocabulary is ever sent. (Compare Shoeybi et al. 2019, "Megatron-LM", section 3.)

All of this runs inside ``VocabSharding.run``; on one device each sum is of one part.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxnets.kernels.linear_softmax.tiles import Options, class_count
from jaxnets.kernels.numerics import log_of_sum
from jaxnets.kernels.vocab_sharding import VocabSharding


def specs(sharding: VocabSharding, options: Options) -> tuple[P, P, P]:
    """Of tokens, of the table, and of what has one number a class."""
    return (
        sharding.token_spec,
        sharding.weight_spec(options.features_first),
        sharding.table_spec,
    )


def log_sum_exp_of_all(sharding: VocabSharding, own: jax.Array) -> jax.Array:
    """The log-sum-exp over all classes of that over each device's own, [tokens]."""
    if not sharding.vocab_axes:
        return own
    lowest = jnp.finfo(own.dtype).min  # a whole shard may be out
    largest = jnp.maximum(sharding.max_over_vocab(own), lowest)
    return log_of_sum(largest, sharding.sum_over_vocab(jnp.exp(own - largest)))


def own_logits(sharding: VocabSharding, own: jax.Array, label_logit: jax.Array) -> jax.Array:
    """``label_logit [tokens]`` of the device that has the label; where ``own``, it is this one.

    Anything where no device has it.
    """
    if not sharding.vocab_axes:
        return label_logit
    return sharding.sum_over_vocab(jnp.where(own, label_logit, 0))


def classes_of_all(sharding: VocabSharding, options: Options, bias: jax.Array) -> jax.Array | int:
    """How many classes of all devices are in: what smoothing divides by; 1 without it."""
    return sharding.sum_over_vocab(class_count(bias)) if options.label_smoothing else 1
