r"""Divergences between two linear heads' distributions, the logits of neither whole in memory.

With :math:`p` the teacher's distribution and :math:`q` the student's, the gradient with respect to
a logit of the student is

.. math::
    \text{forward } KL(p \| q): \quad & q_v - p_v \\
    \text{reverse } KL(q \| p): \quad & q_v \big(\log (q_v / p_v) - KL(q \| p)\big) \\
    JSD_\beta: \quad & (1 - \beta)\, q_v \big(\log (q_v / m_v) - KL(q \| m)\big)

so backward each tile of both heads' logits is computed again, and turned into a tile of the
gradient of the student's table. (A mean or a sum keeps them: ``xla_divergence_one_pass.py``.)

Both heads' logits are multiplied by one number a token, the inverse of a temperature, where they
are made. The cross-entropy of labels is of the student's logits as they are, from the same passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.linear_softmax.labels import (
    label_logits_of_all,
    less_labels,
    local_labels,
    mark_bad_labels,
)
from jaxnets.kernels.linear_softmax.sharded import log_sum_exp_of_all, specs
from jaxnets.kernels.linear_softmax.tile_sizes import TOKENS, even
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    VocabTile,
    scaled,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.xla_two_pass import gradients_by_tile, log_sum_exps
from jaxnets.kernels.vocab_sharding import VocabSharding


class Both(NamedTuple):
    """What is static: the kind, and how the tiles of each head are read."""

    kind: str
    beta: float
    student: Options
    teacher: Options


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def divergence_per_token(
    sharding: VocabSharding,
    both: Both,
    student: tuple,
    teacher: tuple,
    scale: jax.Array | None,
    labels: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """The divergence and the cross-entropy of each token, [...]; the latter of ``labels [...]``.

    ``scale [...]`` multiplies the logits, but those of the cross-entropy; None is 1.
    """
    return _forward(sharding, both, student, teacher, scale, labels)[0]


def both_specs(sharding: VocabSharding, both: Both) -> tuple[tuple, tuple]:
    """How the arrays of the student are split, and those of the teacher."""
    student, teacher = (specs(sharding, options) for options in both[2:])
    return student, teacher


def divergence_terms(both: Both, log_q: jax.Array, log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each class: its part of the divergence, and of the KL that its gradient has."""
    p, q = jnp.exp(log_p), jnp.exp(log_q)

    def part(weight, log_ratio):
        return jnp.where(weight == 0, 0, weight * log_ratio)

    if both.kind == "forward":
        return part(p, log_p - log_q), jnp.zeros_like(q)
    if both.kind == "reverse":
        reverse = part(q, log_q - log_p)
        return reverse, reverse
    log_m = jnp.logaddexp(jnp.log(both.beta) + log_p, jnp.log1p(-both.beta) + log_q)
    own = part(q, log_q - log_m)
    return both.beta * part(p, log_p - log_m) + (1 - both.beta) * own, own


def divergence_slope(both: Both, log_q: jax.Array, log_p: jax.Array, own: jax.Array) -> jax.Array:
    """The gradient of the divergence by the student's logits, [tokens, size]."""
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    if both.kind == "forward":
        return q - p
    if both.kind == "reverse":
        return jnp.where(q == 0, 0, q * (log_q - log_p - own[:, None]))
    log_m = jnp.logaddexp(jnp.log(both.beta) + log_p, jnp.log1p(-both.beta) + log_q)
    return (1 - both.beta) * jnp.where(q == 0, 0, q * (log_q - log_m - own[:, None]))


def _log_p(
    options: Options,
    hidden: jax.Array,
    tile: VocabTile,
    scale: jax.Array | None,
    log_sum_exp: jax.Array,
) -> jax.Array:
    logits, _ = tile_logits(hidden, tile, options)
    return scaled(logits, scale) - log_sum_exp[:, None]


def _forward(
    sharding: VocabSharding,
    both: Both,
    student: tuple,
    teacher: tuple,
    scale: jax.Array | None,
    labels: jax.Array | None,
) -> tuple[tuple, tuple]:
    def on_device(student, teacher, scale, labels):
        batch = student[0].shape[:-1]
        scale = None if scale is None else scale.reshape(-1)
        # The cross-entropy is of logits without a temperature.
        scales = [scale] if labels is None or scale is None else [scale, None]
        flat: list[jax.Array] = []
        sums = []
        for options, (hidden, weight, bias) in zip(both[2:], (student, teacher), strict=True):
            rows = options.rounded(hidden.reshape(-1, hidden.shape[-1]))
            own, _ = log_sum_exps(options, rows, weight, bias, [scale] if flat else scales)
            flat.append(rows)
            sums.append([log_sum_exp_of_all(sharding, each) for each in own])
        (sum_s, *_), (sum_t,) = sums
        size = even(flat[0].shape[0], TOKENS)
        tiles = jax.tree.map(lambda a: token_tiles(a, size), (*flat, scale, sum_s, sum_t))

        def over_tokens(xs):
            hidden_s, hidden_t, scale, sum_s, sum_t = xs

            def over_vocab(totals, index):
                tile_s = vocab_tile(student[1], student[2], index, both.student)
                tile_t = vocab_tile(teacher[1], teacher[2], index, both.teacher)
                log_q = _log_p(both.student, hidden_s, tile_s, scale, sum_s)
                log_p = _log_p(both.teacher, hidden_t, tile_t, scale, sum_t)
                parts = divergence_terms(both, log_q, log_p)
                return tuple(t + p.sum(1) for t, p in zip(totals, parts, strict=True)), None

            zeros = jnp.zeros(size, sum_s.dtype)
            count = tile_count(student[2].shape[0], both.student)
            return lax.scan(over_vocab, (zeros, zeros), jnp.arange(count))[0]

        totals = lax.map(over_tokens, tiles)
        tokens = flat[0].shape[0]
        totals = sharding.sum_over_vocab(tuple(a.reshape(-1)[:tokens] for a in totals))
        of_labels = cross_entropies(sharding, both.student, flat[0], student, labels, sums[0][-1])
        return jax.tree.map(lambda a: a.reshape(batch), (*totals, sum_s, sum_t, *of_labels))

    tokens = sharding.token_spec
    divergence, own, sum_s, sum_t, loss, log_sum = sharding.run(
        on_device, (*both_specs(sharding, both), tokens, tokens), tokens,
        student, teacher, scale, labels,
    )  # fmt: skip
    return (divergence, loss), (student, teacher, scale, labels, own, sum_s, sum_t, log_sum)


def cross_entropies(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    student: tuple,
    labels: jax.Array | None,
    log_sum: jax.Array,
) -> tuple[jax.Array | None, jax.Array | None]:
    """Inside ``run``: the losses of ``labels``, [tokens], and ``log_sum``; None without labels."""
    if labels is None:
        return None, None
    _, weight, bias = student
    logits = label_logits_of_all(sharding, options, hidden, weight, bias, labels.reshape(-1))
    return log_sum - logits, log_sum


def _backward(
    sharding: VocabSharding, both: Both, residuals: tuple, cotangents: tuple
) -> tuple[tuple, None, None, None]:
    def on_device(student, teacher, scale, labels, own, sum_s, sum_t, log_sum, cotangents):
        unused = cotangents[0].reshape(-1) == 0
        hidden_t = both.teacher.rounded(teacher[0].reshape(-1, teacher[0].shape[-1]))
        hidden_t = jnp.where(unused[:, None], 0, hidden_t)

        def slopes(index, _tile):
            tile_t = vocab_tile(teacher[1], teacher[2], index, both.teacher)

            def slope(logits, scale, hidden_t, own, sum_s, sum_t):
                log_p = _log_p(both.teacher, hidden_t, tile_t, scale, sum_t)
                return divergence_slope(both, logits - sum_s[:, None], log_p, own)

            return slope

        # exp(logits - inf) is 0: of tokens that nothing depends on.
        sums = (jnp.where(unused, jnp.inf, a.reshape(-1)) for a in (sum_s, sum_t))
        numbers = hidden_t, jnp.where(unused, 0, own.reshape(-1)), *sums
        return student_gradients(
            sharding, both.student, student, cotangents, scale, labels, log_sum, numbers, slopes
        )

    tokens = sharding.token_spec
    places = both_specs(sharding, both)
    in_specs = (*places, *(tokens,) * 7)
    gradients = sharding.run(on_device, in_specs, places[0], *residuals, cotangents)
    return gradients, None, None, None


divergence_per_token.defvjp(_forward, _backward)


def student_gradients(
    sharding: VocabSharding,
    options: Options,
    student: tuple,
    cotangents: tuple[jax.Array, jax.Array | None],
    scale: jax.Array | None,
    labels: jax.Array | None,
    log_sum: jax.Array | None,
    numbers: tuple[jax.Array, ...],
    slopes: Callable[[jax.Array, VocabTile], Callable[..., jax.Array]],
) -> tuple[jax.Array, ...]:
    """Inside ``run``: the gradients of a student's hidden states, weight and bias.

    Args:
      cotangents: [...] each, of the divergences and, where there are labels, cross-entropies.
      scale: [...], of the logits, or None.
      labels: [...], or None.
      log_sum: [...], the log-sum-exp of the logits without the scale, or None.
      numbers: what else the slopes depend on, [tokens, ...] each.
      slopes: of the index of a tile and the tile, a function of scaled logits [tokens, size], the
        scale and ``numbers`` that gives the slopes of the divergences by the scaled logits,
        [tokens, size]; where the cotangent is 0 they may be anything.
    """
    hidden, weight, bias = student
    shape, vocab_size = hidden.shape, sharding.shards * bias.shape[0]
    of_divergence, of_loss, scale, labels, log_sum = jax.tree.map(
        lambda a: a.reshape(-1), (*cotangents, scale, labels, log_sum)
    )
    unused = of_divergence == 0
    if labels is not None:
        unused &= of_loss == 0
    flat = jnp.where(unused[:, None], 0, options.rounded(hidden.reshape(-1, shape[-1])))
    size = even(flat.shape[0], TOKENS)
    of_tokens = of_divergence, of_loss, scale, log_sum, numbers
    tiles, others = jax.tree.map(lambda a: token_tiles(a, size), (flat, of_tokens))

    def weighted(index, tile):
        slope = slopes(index, tile)

        def gradient(hidden, others):
            of_divergence, of_loss, scale, log_sum, numbers = others
            logits, _ = tile_logits(hidden, tile, options)
            by_scaled = _times(of_divergence, slope(scaled(logits, scale), scale, *numbers))
            by_logits = scaled(by_scaled, scale)
            if labels is not None:
                by_logits += _times(of_loss, jnp.exp(logits - log_sum[:, None]))
            return by_logits

        return gradient

    d_hidden, d_weight, d_bias = gradients_by_tile(options, tiles, weight, bias, others, weighted)
    d_hidden = d_hidden[: flat.shape[0]]
    if labels is not None:
        local, found = local_labels(sharding, labels, bias.shape[0]), (d_hidden, d_weight, d_bias)
        d_hidden, d_weight, d_bias = less_labels(options, flat, weight, bias, local, of_loss, found)
    d_hidden = sharding.sum_over_vocab(d_hidden)
    if labels is not None:
        d_hidden = mark_bad_labels(d_hidden, labels, vocab_size, of_loss == 0)
    d_weight, d_bias = sharding.sum_over_tokens((d_weight, d_bias))
    found = d_hidden.reshape(shape), d_weight, d_bias
    return tuple(g.astype(a.dtype) for g, a in zip(found, student, strict=True))


def _times(cotangent: jax.Array, slope: jax.Array) -> jax.Array:
    """Where the cotangent is 0, 0, whatever the slope is."""
    return jnp.where(cotangent[:, None] == 0, 0, cotangent[:, None] * slope)
