"""A loss and a log-sum-exp for each token, from passes over the vocabulary that an engine makes.

The gradient with respect to a logit is

    d l_v = softmax_factor * exp(l_v - log_sum_exp) - uniform - [v is the label] * label_factor

with three numbers a token that are known once the cotangents are. An engine makes two passes over
the vocabulary: one for the log-sum-exp, one that computes the logits again, tile by tile, and turns
``d l`` into the gradients of hidden states, weights and bias. ``xla_two_pass.py`` is the engine on
XLA, ``pallas.py`` the one on Pallas. Where the vocabulary is split over devices an engine runs on
each, and ``sharded.py`` puts together what they found.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxnets.kernels.linear_softmax.labels import (
    Labels,
    flat_labels,
    local_labels,
    mark_bad_labels,
    of_all_devices,
)
from jaxnets.kernels.linear_softmax.sharded import (
    classes_of_all,
    log_sum_exp_of_all,
    specs,
)
from jaxnets.kernels.linear_softmax.tiles import Options
from jaxnets.kernels.vocab_sharding import VocabSharding


class Statistics(NamedTuple):
    """Of the logits of each token: [tokens] each. The sum is 0 unless smoothing needs it."""

    log_sum_exp: jax.Array
    logit_sum: jax.Array
    label_logit: jax.Array  # anything where the label is not in [0, vocab_size)


class Factors(NamedTuple):
    """Of the gradient of each token's logits: [tokens] each."""

    softmax: jax.Array
    uniform: jax.Array
    label: jax.Array
    entropy: jax.Array | None = None  # of ``-p log p``; on XLA only


@runtime_checkable
class Engine(Protocol):
    """Two passes over ``weight [vocab, features]``, ``bias [vocab]``; hashable.

    By ``options.features_first``, ``weight [features, vocab]``, and its gradient likewise. A label
    outside [0, vocab_size) is no class: it has no effect on a gradient. Only on XLA are they soft.
    """

    def statistics(
        self,
        options: Options,
        hidden: jax.Array,
        weight: jax.Array,
        bias: jax.Array,
        labels: Any,
    ) -> Statistics:
        """The forward pass."""

    def gradient(
        self,
        options: Options,
        hidden: jax.Array,
        weight: jax.Array,
        bias: jax.Array,
        labels: Any,
        log_sum_exp: jax.Array,
        factors: Factors,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The gradients of hidden, weight and bias, each in its dtype or wider."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def per_token(
    sharding: VocabSharding,
    engine: Engine,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: Labels,
) -> tuple[jax.Array, jax.Array]:
    """The loss of ``api.py`` and the log-sum-exp, each [...].

    ``hidden [..., features]``, ``weight [vocab, features]``, ``bias [vocab]``, ``labels [...]``
    int32 or soft (out of range: NaN). ``shard_map`` is not differentiated, so its sums are ours.
    """
    return token_losses(sharding, engine, options, hidden, weight, bias, labels)


def token_losses(
    sharding: VocabSharding,
    engine: Engine,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: Labels,
) -> tuple[jax.Array, jax.Array]:
    """What :func:`per_token` computes, without its gradient rule."""

    def on_device(hidden, weight, bias, labels):
        flat = options.rounded(hidden.reshape(-1, hidden.shape[-1]))
        each, vocab_size = flat_labels(labels), sharding.shards * bias.shape[0]
        local = local_labels(sharding, each, bias.shape[0])
        part = engine.statistics(options, flat, weight, bias, local)
        whole = Statistics(
            log_sum_exp_of_all(sharding, part.log_sum_exp),
            sharding.sum_over_vocab(part.logit_sum) if options.label_smoothing else part.logit_sum,
            of_all_devices(sharding, each, vocab_size, part.label_logit),
        )
        classes = classes_of_all(sharding, options, bias)
        found = losses_of(options, classes, whole), whole.log_sum_exp
        return tuple(a.reshape(hidden.shape[:-1]) for a in found)

    tokens, table, classes = specs(sharding, options)
    return sharding.run(
        on_device, (tokens, table, classes, tokens), (tokens, tokens), hidden, weight, bias, labels
    )


def losses_of(options: Options, classes: Any, statistics: Statistics) -> jax.Array:
    """The losses [tokens], smoothed over so many ``classes``; NaN where the label's logit is."""
    log_sum_exp, logit_sum, label_logit = statistics
    losses = losses_without_smoothing(options, log_sum_exp, label_logit)
    if not options.label_smoothing:
        return losses
    return losses - (options.label_smoothing / classes).astype(losses.dtype) * logit_sum


def losses_without_smoothing(
    options: Options, log_sum_exp: jax.Array, label_logit: jax.Array
) -> jax.Array:
    """What is left of the losses [tokens]; a term of factor 0 is none, even if infinite."""
    losses = log_sum_exp
    if options.label_smoothing < 1:
        losses = losses - (1 - options.label_smoothing) * label_logit
    else:
        losses = jnp.where(jnp.isnan(label_logit), label_logit, losses)
    return losses + options.z_loss * log_sum_exp**2 if options.z_loss else losses


def softmax_slope(options: Options, log_sum_exp: jax.Array) -> jax.Array:
    """The derivative of the losses by the log-sum-exp, [tokens]."""
    ones = jnp.ones_like(log_sum_exp)
    return ones + 2 * options.z_loss * log_sum_exp if options.z_loss else ones


def factors_of(
    options: Options, classes: Any, log_sum_exp: jax.Array, cotangents: Sequence[jax.Array]
) -> Factors:
    """The factors by the cotangents of losses and log-sum-exp, [tokens] each."""
    loss_cotangent, log_sum_exp_cotangent = cotangents
    uniform = jnp.zeros_like(loss_cotangent)
    if options.label_smoothing:
        uniform = loss_cotangent * (options.label_smoothing / classes).astype(uniform.dtype)
    return Factors(
        loss_cotangent * softmax_slope(options, log_sum_exp) + log_sum_exp_cotangent,
        uniform,
        loss_cotangent * (1 - options.label_smoothing),
    )


def _forward(
    sharding: VocabSharding,
    engine: Engine,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: Labels,
) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    losses, log_sum_exp = token_losses(sharding, engine, options, hidden, weight, bias, labels)
    return (losses, log_sum_exp), (hidden, weight, bias, labels, log_sum_exp)


def _backward(
    sharding: VocabSharding,
    engine: Engine,
    options: Options,
    residuals: tuple,
    cotangents: Sequence[jax.Array],
) -> tuple[jax.Array | None, ...]:
    def on_device(residuals, cotangents):
        hidden, weight, bias, labels, log_sum_exp = residuals
        log_sum_exp = log_sum_exp.reshape(-1)
        cotangents = [cotangent.reshape(-1) for cotangent in cotangents]
        classes = classes_of_all(sharding, options, bias)
        factors = factors_of(options, classes, log_sum_exp, cotangents)
        unused = (cotangents[0] == 0) & (cotangents[1] == 0)
        return gradients_on_device(
            sharding, engine, options, hidden, weight, bias, labels, log_sum_exp, factors, unused
        )

    tokens, table, classes = specs(sharding, options)
    in_specs = ((tokens, table, classes, tokens, tokens), (tokens, tokens))
    out_specs = (tokens, table, classes)
    return (*sharding.run(on_device, in_specs, out_specs, residuals, tuple(cotangents)), None)


per_token.defvjp(_forward, _backward)


def gradients_on_device(
    sharding: VocabSharding,
    engine: Engine,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: Labels,
    log_sum_exp: jax.Array,
    factors: Factors,
    unused: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inside ``run``: the gradients of hidden [..., features], weight and bias, in their dtypes.

    ``labels [...]``; ``log_sum_exp``, ``factors`` and ``unused``, the tokens that nothing depends
    on, [tokens]. Those are zeros here, for they must not spread a NaN of their own; their
    log-sum-exp is infinite, as a softmax of 0 is: exp(bias - 0) may overflow.
    """
    flat = jnp.where(unused[:, None], 0, options.rounded(hidden.reshape(-1, hidden.shape[-1])))
    labels, log_sum_exp = flat_labels(labels), jnp.where(unused, jnp.inf, log_sum_exp)
    factors = jax.tree.map(lambda a: jnp.where(unused, 0, a), factors)
    local = local_labels(sharding, labels, bias.shape[0])
    d_hidden, d_weight, d_bias = engine.gradient(
        options, flat, weight, bias, local, log_sum_exp, factors
    )
    d_hidden = sharding.sum_over_vocab(d_hidden)
    d_hidden = mark_bad_labels(d_hidden, labels, sharding.shards * bias.shape[0], unused)
    d_weight, d_bias = sharding.sum_over_tokens((d_weight, d_bias))
    return (
        d_hidden.reshape(hidden.shape).astype(hidden.dtype),
        d_weight.astype(weight.dtype),
        d_bias.astype(bias.dtype),
    )
