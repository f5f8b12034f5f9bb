"""Log-probability and entropy of each token without logits: the public function.

``xla_log_probs.py`` computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, SupportsFloat, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Float, Integer, Shaped

from jaxnets.kernels.checks import as_int
from jaxnets.kernels.linear_softmax.checks import (
    check_compute_dtype,
    check_num_classes,
    check_options,
    check_precision,
    check_temperature,
    known_as_kept,
    sizes_of,
)
from jaxnets.kernels.linear_softmax.projection import prepared, temperature_axis
from jaxnets.kernels.linear_softmax.tile_sizes import Tiles
from jaxnets.kernels.linear_softmax.tiles import Options
from jaxnets.kernels.linear_softmax.xla_log_probs import statistics
from jaxnets.kernels.losses import (
    check_ignore_index,
    check_labels,
    check_projection,
    leave_out,
    vocab_size_of,
)
from jaxnets.kernels.meshes import WHOLE, over_rows
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


class LogProbs(NamedTuple):
    """What :func:`linear_log_probs` returns: of each token, [...].

    Attributes:
      log_prob: of its label; 0 for a token that is left out, as the others are.
      entropy: of the distribution over the classes, in nats.
      log_sum_exp: of the logits.
      argmax: int32, the class of the largest logit, the first of equal ones; without a gradient.
      top_log_probs: [..., k], with ``top_k=k``, of the best classes, the largest first; without a
        gradient. Else None.
      top_ids: int32 [..., k], those classes; of equal ones the first comes first.

    Example:
      >>> import jax.numpy as jnp
      >>> found = linear_log_probs(jnp.ones((2, 4)), jnp.zeros((8, 4)), [3, 5], top_k=2)
      >>> bool(jnp.allclose(found.entropy, jnp.log(8.0))), found.argmax.tolist()
      (True, [0, 0])
      >>> found.top_ids.tolist(), found.top_log_probs.shape
      ([[0, 1], [0, 1]], (2, 2))
    """

    log_prob: jax.Array
    entropy: jax.Array
    log_sum_exp: jax.Array
    argmax: jax.Array
    top_log_probs: jax.Array | None = None
    top_ids: jax.Array | None = None


def linear_log_probs(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "*batch"] | Sequence,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    num_classes: SupportsIndex | None = None,
    ignore_index: SupportsIndex | None = None,
    soft_cap: SupportsFloat | None = None,
    temperature: Shaped[ArrayLike, ""] | Shaped[ArrayLike, "*batch"] | Sequence = 1.0,
    top_k: SupportsIndex | None = None,
    features_first: bool = False,
    compute_dtype: DTypeLike | None = None,
    precision: lax.Precision | str | None = None,
    tiles: Tiles | None = None,
    sharding: VocabSharding | None = None,
) -> LogProbs:
    r"""Log-probability of the label, and entropy, of a linear output layer, without its logits.

    .. math::
        l_v = c \tanh\big((w_v \cdot h + b_v) / (\tau c)\big), \qquad
        \log p_v = l_v - \log \sum_u e^{l_u}, \qquad H = -\sum_v p_v \log p_v

    What policy gradients need of a language model: the first of GRPO and DPO, the second as an
    exploration bonus. Differentiable in the first three results; memory is that of
    :func:`linear_softmax_cross_entropy` with the reduction "none".

    Args:
      hidden: [..., features], float; bfloat16 and float16 are accumulated in float32.
      weight: [vocab, features], float; or, by ``features_first``, [features, vocab].
      labels: [...], integers in [0, vocab_size), or ``ignore_index``: the words that were drawn.
      bias: [vocab] or None; a class of bias -inf is out.
      ignore_index: a label that leaves its token out.
      soft_cap: above 0; logits stay within (-soft_cap, soft_cap).
      temperature: above 0, one for all tokens or [...], one a token.
      top_k: also give so many of the best classes, with their log-probabilities.
      num_classes, features_first, compute_dtype, precision, tiles, sharding: as of
        :func:`linear_softmax_cross_entropy`.

    Returns:
      :class:`LogProbs`, float32 (float64 for float64 input).

    Raises:
      TypeError: float labels, or integer hidden, weight, bias or ``compute_dtype``.
      ValueError: as :func:`linear_softmax_cross_entropy`. Under ``jit`` a label out of range gives
        a log-probability of NaN.

    Example:
      The loss of GRPO (Shao et al. 2024, "DeepSeekMath", section 4.1) with an entropy bonus:

      >>> import jax, jax.numpy as jnp
      >>> def loss(weight, hidden, labels, advantages, old_log_prob):
      ...     now = linear_log_probs(hidden, weight, labels)
      ...     ratio = jnp.exp(now.log_prob - old_log_prob)
      ...     clipped = jnp.clip(ratio, 0.8, 1.2)
      ...     gain = jnp.minimum(ratio * advantages, clipped * advantages)
      ...     return -(gain + 0.01 * now.entropy).mean()
      >>> hidden, labels = jnp.ones((2, 3, 4)), jnp.zeros((2, 3), jnp.int32)
      >>> old = jnp.full((2, 3), -jnp.log(8.0))
      >>> advantages = jnp.array([[1.0], [-1.0]])
      >>> jax.jit(jax.grad(loss))(jnp.zeros((8, 4)), hidden, labels, advantages, old).shape
      (8, 4)

      DPO (Rafailov et al. 2023, equation 7), of preferred and rejected answers:

      >>> def dpo(weight, reference, hidden, labels, beta=0.1):
      ...     now, then = (linear_log_probs(hidden, w, labels, ignore_index=-1).log_prob.sum(-1)
      ...                  for w in (weight, reference))
      ...     better, worse = beta * (now - then)
      ...     return -jax.nn.log_sigmoid(better - worse).mean()
      >>> labels = jnp.array([[[3, 1, 2]], [[4, 6, -1]]])  # [two answers, batch, time]
      >>> table = jnp.zeros((8, 4))
      >>> float(jax.jit(dpo)(table, table, jnp.ones((2, 1, 3, 4)), labels))
      0.6931...
    """
    hidden, weight, bias = check_projection(hidden, weight, bias, features_first)
    vocab_size, batch = vocab_size_of(weight, features_first), hidden.shape[:-1]
    ignore_index = check_ignore_index(ignore_index)
    classes = check_num_classes(num_classes, vocab_size)
    labels = check_labels(labels, batch, classes, ignore_index)
    divisor = check_temperature(
        temperature, batch, known_as_kept(batch, labels, ignore_index, None)
    )
    best = 0 if top_k is None else as_int("top_k", top_k, 1)
    if best > classes:
        raise ValueError(f"top_k must lie in [1, num_classes] = [1, {classes}], got {best}")
    sharding = as_sharding(sharding)
    sharding.check(vocab_size, batch)
    sizes = sizes_of(hidden, weight, features_first, sharding)
    options = check_options(0.0, 0.0, soft_cap, tiles, features_first, sizes)
    computed = check_compute_dtype(compute_dtype, hidden, weight)
    options = options._replace(
        compute_dtype=computed, precision=check_precision(precision), num_classes=classes
    )
    return LogProbs(
        *_log_probs(sharding, options, ignore_index, best, hidden, weight, bias, labels, divisor)
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@jax.named_scope("linear_log_probs")
@over_rows(hidden=0, weight=WHOLE, bias=WHOLE, labels=0, temperature=temperature_axis)
def _log_probs(
    sharding: VocabSharding,
    options: Options,
    ignore_index: int | None,
    top_k: int,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    temperature: jax.Array | None,
) -> tuple[jax.Array, ...]:
    vocab_size, accumulator = weight.shape[options.vocab_axis], options.accumulator(hidden, weight)
    if not labels.size:
        found = (jnp.zeros(labels.shape, accumulator),) * 3 + (jnp.zeros(labels.shape, jnp.int32),)
        best = jnp.zeros((*labels.shape, top_k), accumulator)
        return (*found, best, best.astype(jnp.int32)) if top_k else found
    hidden, labels = sharding.place_tokens(hidden, labels)
    kept, labels = leave_out(
        None, labels, ignore_index, vocab_size, accumulator, options.num_classes
    )
    hidden, weight, bias = prepared(sharding, options, hidden, weight, bias, temperature, kept)
    results = statistics(sharding, options, top_k, hidden, weight, bias, labels)
    if kept is None:
        return results
    out = kept == 0
    return tuple(
        jnp.where(jnp.expand_dims(out, range(out.ndim, a.ndim)), jnp.zeros((), a.dtype), a)
        for a in results
    )
