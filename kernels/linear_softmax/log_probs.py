r"""Log-probability and entropy of each token from one pass over the vocabulary, without logits.

Beside the online log-sum-exp a tile adds to :math:`t = \sum_v e^{d_v} d_v`, with :math:`d_v = l_v -
m` and m the largest logit so far. With :math:`s = \sum_v e^{d_v}` the entropy is

.. math:: H = -\sum_v p_v \log p_v = \log s - t / s

which takes no difference of large numbers. Where m grows by :math:`\delta`, :math:`t` becomes
:math:`e^{-\delta} (t - \delta s)`. The gradient with respect to a logit is, for cotangents a of
the log-probability, b of the entropy and c of the log-sum-exp,

.. math:: d l_v = a\, [v = y] + p_v\, (c - a - b\, (\log p_v + H))

so the backward pass is the one of ``xla_two_pass.py`` with one number more a token: the logits are
computed again, tile by tile, and four matmuls are all there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Float, Integer, Shaped

from jaxnets.kernels.checks import in_range
from jaxnets.kernels.linear_softmax.checks import (
    check_compute_dtype,
    check_options,
    check_temperature,
    known_as_kept,
)
from jaxnets.kernels.linear_softmax.per_token import Factors, gradients_on_device
from jaxnets.kernels.linear_softmax.projection import prepared, temperature_axis
from jaxnets.kernels.linear_softmax.sharded import own_logits, specs
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    Tiles,
    label_logits,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.xla_two_pass import TiledEngine
from jaxnets.kernels.losses import (
    check_ignore_index,
    check_labels,
    check_projection,
    leave_out,
    vocab_size_of,
)
from jaxnets.kernels.meshes import WHOLE, over_rows
from jaxnets.kernels.numerics import log_of_sum
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding

_TOKENS = 512  # at a time, as in xla_two_pass.py


class LogProbs(NamedTuple):
    """What :func:`linear_log_probs` returns: of each token, [...].

    Attributes:
      log_prob: of its label; 0 for a token that is left out, as the others are.
      entropy: of the distribution over the classes, in nats.
      log_sum_exp: of the logits.
      argmax: int32, the class of the largest logit, the first of equal ones; without a gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> found = linear_log_probs(jnp.ones((2, 4)), jnp.zeros((8, 4)), jnp.array([3, 5]))
      >>> bool(jnp.allclose(found.entropy, jnp.log(8.0))), found.argmax.tolist()
      (True, [0, 0])
    """

    log_prob: jax.Array
    entropy: jax.Array
    log_sum_exp: jax.Array
    argmax: jax.Array


def linear_log_probs(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "*batch"] | Sequence,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    ignore_index: SupportsIndex | None = None,
    soft_cap: SupportsFloat | None = None,
    temperature: Shaped[ArrayLike, ""] | Shaped[ArrayLike, "*batch"] | Sequence = 1.0,
    features_first: bool = False,
    compute_dtype: DTypeLike | None = None,
    tiles: Tiles | None = None,
    sharding: VocabSharding | None = None,
) -> LogProbs:
    r"""Log-probability of the label, and entropy, of a linear output layer, without its logits.

    .. math::
        l_v = c \tanh\big((w_v \cdot h + b_v) / (\tau c)\big), \qquad
        \log p_v = l_v - \log \sum_u e^{l_u}, \qquad H = -\sum_v p_v \log p_v

    What policy gradients need of a language model: the first of GRPO and DPO, the second as an
    exploration bonus. Differentiable in all but the argmax; memory is that of
    :func:`linear_softmax_cross_entropy` with the reduction "none".

    Args:
      hidden: [..., features], float; bfloat16 and float16 are accumulated in float32.
      weight: [vocab, features], float; or, by ``features_first``, [features, vocab].
      labels: [...], integers in [0, vocab_size), or ``ignore_index``: the words that were drawn.
      bias: [vocab] or None; a class of bias -inf is out.
      ignore_index: a label that leaves its token out.
      soft_cap: above 0; logits stay within (-soft_cap, soft_cap).
      temperature: above 0, one for all tokens or [...], one a token.
      features_first, compute_dtype, tiles, sharding: as of :func:`linear_softmax_cross_entropy`.

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
      >>> jax.grad(loss)(jnp.zeros((8, 4)), hidden, labels, advantages, old).shape
      (8, 4)

      DPO (Rafailov et al. 2023, equation 7), of preferred and rejected answers:

      >>> def dpo(weight, reference, hidden, labels, beta=0.1):
      ...     now, then = (linear_log_probs(hidden, w, labels, ignore_index=-1).log_prob.sum(-1)
      ...                  for w in (weight, reference))
      ...     better, worse = beta * (now - then)
      ...     return -jax.nn.log_sigmoid(better - worse).mean()
      >>> labels = jnp.array([[[3, 1, 2]], [[4, 6, -1]]])  # [two answers, batch, time]
      >>> table = jnp.zeros((8, 4))
      >>> float(dpo(table, table, jnp.ones((2, 1, 3, 4)), labels))
      0.6931...
    """
    hidden, weight, bias = check_projection(hidden, weight, bias, features_first)
    vocab_size, batch = vocab_size_of(weight, features_first), hidden.shape[:-1]
    ignore_index = check_ignore_index(ignore_index)
    labels = check_labels(labels, batch, vocab_size, ignore_index)
    divisor = check_temperature(temperature, batch, known_as_kept(labels, ignore_index, None))
    sharding = as_sharding(sharding)
    sharding.check(vocab_size, batch)
    tokens = labels.size // sharding.token_shards
    options = check_options(0.0, 0.0, soft_cap, tiles, features_first, tokens)
    options = options._replace(compute_dtype=check_compute_dtype(compute_dtype, hidden, weight))
    return LogProbs(
        *_log_probs(sharding, options, ignore_index, hidden, weight, bias, labels, divisor)
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
@jax.named_scope("linear_log_probs")
@over_rows(hidden=0, weight=WHOLE, bias=WHOLE, labels=0, temperature=temperature_axis)
def _log_probs(
    sharding: VocabSharding,
    options: Options,
    ignore_index: int | None,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    temperature: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    vocab_size, accumulator = weight.shape[options.vocab_axis], options.accumulator(hidden, weight)
    if not labels.size:
        nothing = jnp.zeros(labels.shape, accumulator)
        return nothing, nothing, nothing, jnp.zeros(labels.shape, jnp.int32)
    hidden, labels = sharding.place_tokens(hidden, labels)
    kept, labels = leave_out(None, labels, ignore_index, vocab_size, accumulator)
    hidden, weight, bias = prepared(sharding, options, hidden, weight, bias, temperature, kept)
    found = _statistics(sharding, options, hidden, weight, bias, labels)
    if kept is None:
        return found
    return jax.tree.map(lambda a: jnp.where(kept == 0, jnp.zeros((), a.dtype), a), found)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _statistics(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Log-probability, entropy, log-sum-exp and argmax, [...] each."""

    def on_device(hidden, weight, bias, labels):
        flat = options.rounded(hidden.reshape(-1, hidden.shape[-1]))
        flat_labels = labels.reshape(-1)
        largest, total, product, first = _passes(options, flat, weight, bias)
        everywhere = sharding.max_over_vocab(largest)
        shift = largest - everywhere
        total, product = sharding.sum_over_vocab(_moved(shift, total, product))
        # Of equal maxima the first class of all devices.
        candidate = jnp.where(
            shift == 0, first + sharding.start(bias.shape[0]), jnp.iinfo(jnp.int32).max
        )
        first = -sharding.max_over_vocab(-candidate)
        log_sum_exp = log_of_sum(everywhere, total)
        local, own = sharding.local_ids(flat_labels, bias.shape[0])
        label_logit, _, _ = label_logits(flat, weight, bias, local, options)
        label_logit = own_logits(sharding, own, label_logit)
        inside = in_range(flat_labels, sharding.shards * bias.shape[0])
        log_prob = jnp.where(inside, label_logit, jnp.nan) - log_sum_exp
        entropy = jnp.log(total) - product / total
        results = log_prob, entropy, log_sum_exp, first.astype(jnp.int32)
        return jax.tree.map(lambda a: a.reshape(labels.shape), results)

    tokens, table, classes = specs(sharding, options)
    return sharding.run(
        on_device, (tokens, table, classes, tokens), (tokens,) * 4, hidden, weight, bias, labels
    )


def _passes(
    options: Options, hidden: jax.Array, weight: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """m, s, t and the first class of the largest logit, [tokens] each."""
    tokens, dtype = hidden.shape[0], options.accumulator(hidden, weight)
    size = min(_TOKENS, tokens)
    lowest = jnp.finfo(dtype).min

    def over_tokens(hidden):
        def over_vocab(carry, index):
            largest, total, product, first = carry
            tile = vocab_tile(weight, bias, index, options)
            logits, _ = tile_logits(hidden, tile, options)
            here = logits.max(1)
            place = (tile.start + jnp.argmax(logits, 1)).astype(jnp.int32)
            first = jnp.where(here > largest, place, first)
            now = jnp.maximum(largest, here)
            total, product = _moved(largest - now, total, product)
            below = logits - now[:, None]
            total += jnp.exp(below).sum(1)
            product += _times_exp(below).sum(1)
            return (now, total, product, first), None

        zeros = jnp.zeros(size, dtype)
        start = jnp.full(size, lowest), zeros, zeros, jnp.zeros(size, jnp.int32)
        found, _ = lax.scan(over_vocab, start, jnp.arange(tile_count(bias.shape[0], options)))
        return found

    found = lax.map(over_tokens, token_tiles(hidden, size))
    return jax.tree.map(lambda a: a.reshape(-1)[:tokens], found)


def _times_exp(distance: jax.Array) -> jax.Array:
    """``x exp(x)``, 0 where the exponential is, be the distance infinite."""
    e = jnp.exp(distance)
    return jnp.where(e == 0, 0, distance * e)


def _moved(shift: jax.Array, total: jax.Array, product: jax.Array) -> tuple[jax.Array, jax.Array]:
    """s and t by a maximum that is larger by ``-shift``."""
    decay = jnp.exp(shift)
    return total * decay, product * decay + total * _times_exp(shift)


def _forward(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
) -> tuple[tuple, tuple]:
    found = _statistics(sharding, options, hidden, weight, bias, labels)
    return found, (hidden, weight, bias, labels, *found[1:3])


def _backward(
    sharding: VocabSharding, options: Options, residuals: tuple, cotangents: Sequence[Any]
) -> tuple[jax.Array | None, ...]:
    def on_device(residuals, cotangents):
        hidden, weight, bias, labels, entropy, log_sum_exp = residuals
        of_label, of_entropy, of_sum = (a.reshape(-1) for a in cotangents)
        unused = (of_label == 0) & (of_entropy == 0) & (of_sum == 0)
        straight = of_sum - of_label - of_entropy * entropy.reshape(-1)
        factors = Factors(straight, jnp.zeros_like(straight), -of_label, of_entropy)
        return gradients_on_device(
            sharding, TiledEngine(), options, hidden, weight, bias, labels,
            log_sum_exp.reshape(-1), factors, unused,
        )  # fmt: skip

    tokens, table, classes = specs(sharding, options)
    in_specs = ((tokens, table, classes, tokens, tokens, tokens), (tokens,) * 3)
    out_specs = (tokens, table, classes)
    gradients = sharding.run(on_device, in_specs, out_specs, residuals, tuple(cotangents[:3]))
    return (*gradients, None)


_statistics.defvjp(_forward, _backward)
