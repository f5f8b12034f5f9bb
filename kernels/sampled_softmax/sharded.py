"""The sampled losses over tables that are split over devices.

A row is read by the device that has it and summed over the shards with the zeros of the others, so
what goes over the wire is the rows: (samples + tokens) x features, whatever the vocabulary. Each
device computes the loss of its tokens over all samples: the axes of the vocabulary save memory
here, not arithmetic.

There are two ways to train. A loss on the whole tables has a dense gradient on each device's
classes, which costs memory but is not sent. With a large vocabulary let the gradient be rows:
:func:`jaxnets.kernels.gather_rows`, the same loss on the small table (a sharding without a
``vocab_axis``), and ``jaxnets.optim.sharded_update``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxnets.kernels.rows.sharded import dense_gradient, read_sharded
from jaxnets.kernels.sampled_softmax.candidates import Options, candidates
from jaxnets.kernels.samplers.samples import Samples
from jaxnets.kernels.vocab_sharding import VocabSharding


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def split_losses(
    sharding: VocabSharding,
    options: Options,
    loss: Callable,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
    share: jax.Array | None,
) -> jax.Array:
    """The losses [...] by ``loss``, a function of ``xla.py``.

    ``shard_map`` is not differentiated, so its sums are ours.
    """
    return _forward(sharding, options, loss, hidden, weight, bias, labels, samples, share)[0]


def samples_specs(sharding: VocabSharding, samples: Samples) -> Any:
    """How samples are split: as the tokens where each token has its own."""
    tokens = sharding.token_spec
    drawn = tokens if samples.ids.ndim > 1 else P()
    places: Any = drawn, drawn, tokens, tokens if samples.tries.ndim else P()
    return Samples(*places)


def _forward(
    sharding: VocabSharding,
    options: Options,
    loss: Callable,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
    share: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    vocab_size = weight.shape[options.vocab_axis]
    tokens, given = sharding.token_spec, samples_specs(sharding, samples)

    def on_device(hidden, weight, bias, labels, samples, share):
        read = partial(read_sharded, sharding, vocab_size)
        gathered = candidates(
            options, vocab_size, hidden, weight, bias, labels, samples, share, read
        )
        return loss(*gathered).reshape(hidden.shape[:-1]), gathered

    table, classes = sharding.weight_spec(options.features_first), sharding.table_spec
    in_specs = (tokens, table, classes, tokens, given, tokens)
    out_specs = (tokens, _gathered(sharding, given.ids))
    losses, gathered = sharding.run(
        on_device, in_specs, out_specs, hidden, weight, bias, labels, samples, share
    )
    return losses, (gathered, weight, bias, labels, samples)


def _gathered(sharding: VocabSharding, drawn: P) -> tuple[P, ...]:
    """Of ``(hidden, true rows and offsets, sampled rows and offsets, hits, share)``."""
    tokens = sharding.token_spec
    return tokens, tokens, tokens, drawn, drawn, tokens, tokens


def _backward(
    sharding: VocabSharding, options: Options, loss: Callable, residuals: tuple,
    cotangent: jax.Array,
) -> tuple[jax.Array | None, ...]:  # fmt: skip
    gathered, weight, bias, labels, samples = residuals
    own_samples = samples.ids.ndim > 1
    tokens, drawn = sharding.token_spec, samples_specs(sharding, samples).ids

    def of_all(*arrays):
        """Each token's own classes, with its gradients of them, from all devices.

        Not their sums, which would have the size of the vocabulary.
        """
        if not sharding.token_axis:
            return arrays
        return tuple(lax.all_gather(a, sharding.token_axes, tiled=True) for a in arrays)

    def on_device(gathered, weight, bias, labels, ids, cotangent):
        _, transposed = jax.vjp(loss, *gathered)
        d_hidden, *true, sampled, sampled_offset, _, _ = transposed(cotangent.reshape(-1))
        labels, *true = of_all(labels.reshape(true[1].shape), *true)
        if own_samples:
            ids = ids.reshape(sampled_offset.shape)
            ids, sampled, sampled_offset = of_all(ids, sampled, sampled_offset)
        else:
            sampled, sampled_offset = sharding.sum_over_tokens((sampled, sampled_offset))

        def scatter(table, axis, true, sampled):
            if table is None:
                return None
            return dense_gradient(sharding, table, axis, [(ids, sampled), (labels, true)])

        d_weight = scatter(weight, options.vocab_axis, true[0], sampled)
        return d_hidden, d_weight, scatter(bias, 0, true[1], sampled_offset)

    table, classes = sharding.weight_spec(options.features_first), sharding.table_spec
    in_specs = (_gathered(sharding, drawn), table, classes, tokens, drawn, tokens)
    d_hidden, d_weight, d_bias = sharding.run(
        on_device, in_specs, (tokens, table, classes),
        gathered, weight, bias, labels, samples.ids, cotangent,
    )  # fmt: skip
    shape = (*cotangent.shape, d_hidden.shape[-1])
    return d_hidden.reshape(shape), d_weight, d_bias, None, None, None


split_losses.defvjp(_forward, _backward)
