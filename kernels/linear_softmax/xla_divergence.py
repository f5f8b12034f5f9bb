r"""Divergences between two linear heads' distributions, the logits of neither whole in memory.

With :math:`p` the teacher's distribution and :math:`q` the student's, the gradient with respect to
a logit of the student is

.. math::
    \text{forward } KL(p \| q): \quad & q_v - p_v \\
    \text{reverse } KL(q \| p): \quad & q_v \big(\log (q_v / p_v) - KL(q \| p)\big) \\
    JSD_\beta: \quad & (1 - \beta)\, q_v \big(\log (q_v / m_v) - KL(q \| m)\big)

so backward each tile of both heads' logits is computed again, and turned into a tile of the
gradient of the student's table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.linear_softmax.sharded import log_sum_exp_of_all, specs
from jaxnets.kernels.linear_softmax.tiles import (
    TOKENS,
    Options,
    VocabTile,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.xla_two_pass import TiledEngine, gradients_by_tile
from jaxnets.kernels.vocab_sharding import VocabSharding


class Both(NamedTuple):
    """What is static: the kind, and how the tiles of each head are read."""

    kind: str
    beta: float
    student: Options
    teacher: Options


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def divergence_per_token(
    sharding: VocabSharding, both: Both, student: tuple, teacher: tuple
) -> jax.Array:
    """The divergence of each token, [...]."""
    return _forward(sharding, both, student, teacher)[0]


def _in_specs(sharding: VocabSharding, both: Both) -> tuple[tuple, tuple]:
    student, teacher = (specs(sharding, options) for options in both[2:])
    return student, teacher


def _terms(both: Both, log_q: jax.Array, log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
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


def _slope(both: Both, log_q: jax.Array, log_p: jax.Array, own: jax.Array) -> jax.Array:
    """The gradient of the divergence by the student's logits, [tokens, size]."""
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    if both.kind == "forward":
        return q - p
    if both.kind == "reverse":
        return jnp.where(q == 0, 0, q * (log_q - log_p - own[:, None]))
    log_m = jnp.logaddexp(jnp.log(both.beta) + log_p, jnp.log1p(-both.beta) + log_q)
    return (1 - both.beta) * jnp.where(q == 0, 0, q * (log_q - log_m - own[:, None]))


def _log_p(options: Options, hidden: jax.Array, tile: Any, log_sum_exp: jax.Array) -> jax.Array:
    logits, _ = tile_logits(hidden, tile, options)
    return logits - log_sum_exp[:, None]


def _forward(
    sharding: VocabSharding, both: Both, student: tuple, teacher: tuple
) -> tuple[jax.Array, tuple]:
    def on_device(student, teacher):
        batch = student[0].shape[:-1]
        flat, sums = [], []
        for options, (hidden, weight, bias) in zip(both[2:], (student, teacher), strict=True):
            rows = options.rounded(hidden.reshape(-1, hidden.shape[-1]))
            none = jnp.zeros(rows.shape[0], jnp.int32)
            own = TiledEngine().statistics(options, rows, weight, bias, none).log_sum_exp
            flat.append(rows)
            sums.append(log_sum_exp_of_all(sharding, own))
        size = min(TOKENS, flat[0].shape[0])
        tiles = [token_tiles(a, size) for a in (*flat, *sums)]

        def over_tokens(xs):
            hidden_s, hidden_t, sum_s, sum_t = xs

            def over_vocab(totals, index):
                tile_s = vocab_tile(student[1], student[2], index, both.student)
                tile_t = vocab_tile(teacher[1], teacher[2], index, both.teacher)
                log_q = _log_p(both.student, hidden_s, tile_s, sum_s)
                log_p = _log_p(both.teacher, hidden_t, tile_t, sum_t)
                parts = _terms(both, log_q, log_p)
                return tuple(t + p.sum(1) for t, p in zip(totals, parts, strict=True)), None

            zeros = jnp.zeros(size, sum_s.dtype)
            count = tile_count(student[2].shape[0], both.student)
            return lax.scan(over_vocab, (zeros, zeros), jnp.arange(count))[0]

        totals = lax.map(over_tokens, tuple(tiles))
        tokens = flat[0].shape[0]
        totals = sharding.sum_over_vocab(tuple(a.reshape(-1)[:tokens] for a in totals))
        return jax.tree.map(lambda a: a.reshape(batch), (*totals, *sums))

    tokens = sharding.token_spec
    losses, *rest = sharding.run(
        on_device, _in_specs(sharding, both), (tokens,) * 4, student, teacher
    )
    return losses, (student, teacher, *rest)


def _backward(
    sharding: VocabSharding, both: Both, residuals: tuple, cotangent: jax.Array
) -> tuple[tuple, None]:
    def on_device(student, teacher, own, sum_s, sum_t, cotangent):
        unused = cotangent.reshape(-1) == 0
        hidden_t = both.teacher.rounded(teacher[0].reshape(-1, teacher[0].shape[-1]))
        hidden_t = jnp.where(unused[:, None], 0, hidden_t)

        def slopes(index, tile_s):
            tile_t = vocab_tile(teacher[1], teacher[2], index, both.teacher)

            def slope(hidden_s, hidden_t, own, sum_s, sum_t):
                log_q = _log_p(both.student, hidden_s, tile_s, sum_s)
                return _slope(both, log_q, _log_p(both.teacher, hidden_t, tile_t, sum_t), own)

            return slope

        # exp(logits - inf) is 0: of tokens that nothing depends on.
        sums = (jnp.where(unused, jnp.inf, a.reshape(-1)) for a in (sum_s, sum_t))
        numbers = hidden_t, jnp.where(unused, 0, own.reshape(-1)), *sums
        return student_gradients(sharding, both.student, student, cotangent, numbers, slopes)

    tokens = sharding.token_spec
    places = _in_specs(sharding, both)
    gradients = sharding.run(on_device, (*places, *(tokens,) * 4), places[0], *residuals, cotangent)
    return gradients, None


divergence_per_token.defvjp(_forward, _backward)


def student_gradients(
    sharding: VocabSharding,
    options: Options,
    student: tuple,
    cotangent: jax.Array,
    numbers: tuple[jax.Array, ...],
    slopes: Callable[[jax.Array, VocabTile], Callable[..., jax.Array]],
) -> tuple[jax.Array, ...]:
    """Inside ``run``: the gradients of a student's hidden states, weight and bias.

    Args:
      cotangent: [...], of the divergences.
      numbers: what else the slopes depend on, [tokens, ...] each.
      slopes: of the index of a tile and the tile, a function of hidden states [tokens, features]
        and ``numbers`` that gives the slopes of the divergences by the logits, [tokens, size];
        where the cotangent is 0 they may be anything.
    """
    hidden, weight, bias = student
    shape = hidden.shape
    flat, cotangent = options.rounded(hidden.reshape(-1, shape[-1])), cotangent.reshape(-1)
    flat = jnp.where((cotangent == 0)[:, None], 0, flat)
    size = min(TOKENS, flat.shape[0])
    tiles, *others = (token_tiles(a, size) for a in (flat, cotangent, *numbers))

    def weighted(index, tile):
        slope = slopes(index, tile)

        def gradient(hidden, others):
            cotangent, *numbers = others
            factor = cotangent[:, None]
            return jnp.where(factor == 0, 0, factor * slope(hidden, *numbers))

        return gradient

    d_hidden, d_weight, d_bias = gradients_by_tile(options, tiles, weight, bias, others, weighted)
    d_hidden = sharding.sum_over_vocab(d_hidden[: flat.shape[0]])
    d_weight, d_bias = sharding.sum_over_tokens((d_weight, d_bias))
    found = d_hidden.reshape(shape), d_weight, d_bias
    return tuple(g.astype(a.dtype) for g, a in zip(found, student, strict=True))
