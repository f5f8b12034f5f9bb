"""A weight for each class as one for each token: that of its label."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxnets.kernels.checks import in_range
from jaxnets.kernels.losses import check_weights, read_rows, safe_ids
from jaxnets.kernels.meshes import WHOLE, over_rows
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.vocab_sharding import VocabSharding


def check_class_weights(
    class_weights: Any, classes: int, label_weights: Any, label_smoothing: float
) -> jax.Array | None:
    """``class_weights`` as [classes] or None; raises with what makes several labels a token."""
    if class_weights is None:
        return None
    class_weights = check_weights(class_weights, (classes,), "class_weights", "class")
    if label_weights is not None:
        raise ValueError("class_weights must come without label_weights, got both")
    if label_smoothing:
        raise ValueError(
            "class_weights must come without label_smoothing, of which a token has several "
            f"classes, got label_smoothing={label_smoothing}"
        )
    return class_weights


@partial(jax.jit, static_argnums=0)
@over_rows(hidden=0, labels=0, class_weights=WHOLE, token_weights=0)
def weights_by_class(
    sharding: VocabSharding,
    hidden: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    token_weights: jax.Array | None,
) -> jax.Array:
    """``token_weights`` times the weight of each label's class, [...]; ``hidden`` has the batch.

    1 where a label is out of range, whose loss is still to be NaN, or is left out elsewhere.
    """
    vocab_size, dtype = class_weights.shape[0], accumulator_dtype(hidden)

    def on_device(labels, class_weights):
        found = read_rows(class_weights.astype(dtype), safe_ids(labels, vocab_size))
        return jnp.where(in_range(labels, vocab_size), found, 1)

    tokens = sharding.token_spec
    weights = sharding.run(on_device, (tokens, P()), tokens, labels, class_weights)
    if token_weights is None:
        return weights
    (token_weights,) = sharding.place_tokens(token_weights.astype(dtype))
    return jnp.where(token_weights == 0, 0, weights) * token_weights
