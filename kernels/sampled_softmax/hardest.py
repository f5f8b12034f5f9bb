"""The hardest of many samples: those that a token scores highest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import ArrayLike, Float, Integer

from jaxnets.kernels import checks
from jaxnets.kernels.losses import check_ignore_index, vocab_size_of
from jaxnets.kernels.losses_over_rows import samples_rows
from jaxnets.kernels.meshes import WHOLE, over_rows
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.rows.sharded import read_sharded
from jaxnets.kernels.sampled_softmax.candidates import Options, candidates, check, leave_out
from jaxnets.kernels.sampled_softmax.sharded import samples_specs
from jaxnets.kernels.sampled_softmax.xla import candidate_logits
from jaxnets.kernels.samplers.samples import Samples
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


def hardest_samples(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "..."] | Sequence,
    samples: Samples | tuple,
    num_hardest: SupportsIndex,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    subtract_log_q: bool = True,
    remove_accidental_hits: bool = True,
    ignore_index: SupportsIndex | None = None,
    features_first: bool = False,
    sharding: VocabSharding | None = None,
) -> Samples:
    r"""Of each token's samples the ``num_hardest`` with the largest logits.

    Dynamic negative sampling (Zhang et al. 2013, "Optimizing Top-N Collaborative Filtering via
    Dynamic Negative Item Sampling"): samples that a model ranks low anyway teach it
    little. Scoring has no gradient, so a loss on the result costs ``num_hardest`` rows a token
    where one on ``samples`` would cost all.

    Expected counts stay as they were drawn, which makes a sampled softmax on the result that on all
    of ``samples`` with the smallest terms of its sum left out: it is below by

    .. math:: \log \frac{\sum_{k \in T \cup S} e^{o_k}}{\sum_{k \in T \cup H} e^{o_k}}

    for the hardest H of S, and so biased, the less the more of the sum they hold. Losses without
    log Q rank by it too unless told not to.

    Args:
      hidden, weight, labels, samples, bias: as the loss is to be given them.
      remove_accidental_hits, ignore_index, features_first, sharding: the same.
      num_hardest: how many to keep, at least 1 and at most as many as there are.
      subtract_log_q: rank by the corrected logits, as sampled softmax and NCE have them; False for
        losses without log Q.

    Returns:
      :class:`Samples`, each token's own: ids [..., num_hardest], the hardest first. A hit, or what
      was no candidate before, is none after, where there are not enough others.

    Raises:
      TypeError, ValueError: as :func:`jaxnets.kernels.sampled_softmax_cross_entropy`, or
        ``num_hardest`` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import bpr_loss
      >>> hidden, weight = jnp.ones((1, 1)), jnp.arange(10.0)[:, None]
      >>> samples = Samples.from_candidates([2, 8, 5, 9], labels := jnp.array([9]))
      >>> hard = hardest_samples(hidden, weight, labels, samples, 2)
      >>> hard.ids.tolist()  # 9 is a hit
      [[8, 5]]
      >>> bool(bpr_loss(hidden, weight, labels, hard) > bpr_loss(hidden, weight, labels, samples))
      True
    """
    ignore_index = check_ignore_index(ignore_index)
    arrays = check(
        hidden, weight, bias, labels, samples, None, "none", ignore_index, features_first
    )
    num_hardest = checks.as_int("num_hardest", num_hardest, 1)
    available = arrays[4].ids.shape[-1]
    if num_hardest > available:
        raise ValueError(f"num_hardest must be at most {available}, got {num_hardest}")
    options = Options(bool(subtract_log_q), bool(remove_accidental_hits), bool(features_first))
    sharding = as_sharding(sharding)
    sharding.check(vocab_size_of(weight, features_first), arrays[0].shape[:-1])
    return _hardest(sharding, num_hardest, options, ignore_index, *lax.stop_gradient(arrays[:5]))


def _places(given: dict[str, Any]) -> Any:
    """The batch's axis in the result, for ``over_rows``."""
    tries: Any = 0 if given["samples"].tries.ndim else WHOLE
    own: Any = 0
    return Samples(own, own, own, tries)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@jax.named_scope("hardest_samples")
@over_rows(hidden=0, weight=WHOLE, bias=WHOLE, labels=0, samples=samples_rows, results=_places)
def _hardest(
    sharding: VocabSharding,
    num_hardest: int,
    options: Options,
    ignore_index: int | None,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
) -> Samples:
    vocab_size, dtype = weight.shape[options.vocab_axis], accumulator_dtype(hidden, weight)

    def on_device(hidden, weight, bias, labels, samples):
        batch = hidden.shape[:-1]
        share, _ = leave_out(labels, None, ignore_index, batch, dtype)
        read = partial(read_sharded, sharding, vocab_size)
        _, scores = candidate_logits(
            *candidates(options, vocab_size, hidden, weight, bias, labels, samples, share, read)
        )
        best, at = lax.top_k(scores, num_hardest)

        def chosen(array):
            rows = jnp.broadcast_to(array, (*batch, array.shape[-1])).reshape(scores.shape)
            return jnp.take_along_axis(rows, at, 1)

        count = jnp.where(jnp.isneginf(best), jnp.inf, chosen(samples.log_expected_count))
        shape = (*batch, num_hardest)
        return chosen(samples.ids).reshape(shape), count.reshape(shape)

    tokens, table = sharding.token_spec, sharding.weight_spec(options.features_first)
    given = samples_specs(sharding, samples)
    in_specs = tokens, table, sharding.table_spec, tokens, given
    ids, count = sharding.run(on_device, in_specs, tokens, hidden, weight, bias, labels, samples)
    return samples._replace(ids=ids, log_expected_count=count)
