"""Divergences between two linear heads, for distillation: the public function and its equation.

``xla_divergence.py`` computes them, ``xla_top_k_divergence.py`` that from a teacher on record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, SupportsFloat, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Shaped

from jaxnets.kernels.checks import as_number
from jaxnets.kernels.linear_softmax.checks import check_compute_dtype, check_options
from jaxnets.kernels.linear_softmax.projection import prepared
from jaxnets.kernels.linear_softmax.tiles import Options, Tiles
from jaxnets.kernels.linear_softmax.top_k_teacher import (
    TopKTeacher,
    check_teacher,
    probabilities,
)
from jaxnets.kernels.linear_softmax.xla_divergence import Both, divergence_per_token
from jaxnets.kernels.linear_softmax.xla_top_k_divergence import top_k_divergence_per_token
from jaxnets.kernels.losses import (
    Reduction,
    check_projection,
    check_reduction,
    check_weights,
    reduce_losses,
)
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding

Kind = Literal["forward", "reverse", "jsd"]


class Head(NamedTuple):
    """Hidden states and the linear layer that makes logits of them.

    Attributes:
      hidden: [..., features], float.
      weight: [vocab, features], float; or, by ``features_first``, [features, vocab].
      bias: [vocab] or None; a class of bias -inf is out.
      features_first: the layout of ``weight``.

    Example:
      >>> import jax.numpy as jnp
      >>> Head(jnp.ones((2, 4)), jnp.zeros((10, 4))).weight.shape
      (10, 4)
    """

    hidden: Any
    weight: Any
    bias: Any = None
    features_first: bool = False


def linear_divergence(
    student: Head | tuple,
    teacher: Head | TopKTeacher | tuple,
    *,
    kind: Kind = "forward",
    beta: SupportsFloat = 0.5,
    temperature: SupportsFloat = 1.0,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    reduction: Reduction = "mean",
    compute_dtype: DTypeLike | None = None,
    tiles: Tiles | None = None,
    sharding: VocabSharding | None = None,
) -> Float[Array, "..."]:
    r"""Divergence of a student's distribution over classes from a teacher's, for distillation.

    .. math::
        \text{forward: } & KL(p \| q) = \sum_v p_v \log (p_v / q_v) \\
        \text{reverse: } & KL(q \| p) \\
        \text{jsd: } & \beta KL(p \| m) + (1 - \beta) KL(q \| m), \quad m = \beta p + (1 - \beta) q

    with the teacher's softmax p and the student's q (Hinton et al. 2015, "Distilling the Knowledge
    in a Neural Network"; Agarwal et al. 2024, "On-Policy Distillation of Language Models", section
    2). The heads have a size of hidden state each, and one vocabulary.

    Args:
      student: hidden states [..., features] and their head.
      teacher: of the same tokens, a head, or with the forward KL what is on record of one, as
        :class:`TopKTeacher`: all its other classes then count as one, as do the student's, and the
        divergence is a lower bound of the whole. Nothing of it gets a gradient.
      kind: "forward", "reverse" or "jsd".
      beta: in (0, 1), of "jsd".
      temperature: above 0; the logits of both are divided by it. What is on record is taken as it
        is.
      token_weights: [...], a factor for each token; 0 (or False) leaves the token out.
      reduction: "mean" (by weight), "sum" or "none" (one a token).
      compute_dtype, tiles: as of :func:`linear_softmax_cross_entropy`, and of both heads.
      sharding: over which axes classes and tokens are split, of both heads alike.

    Returns:
      The divergence in nats, a scalar or [...] for "none", float32 (float64 for float64 input).

    Raises:
      TypeError: integer hidden states, weights, biases or ``compute_dtype``.
      ValueError: shapes that do not fit, heads of different vocabularies or tokens, an option out
        of its range, or what is on record where its values are known. Under ``jit`` an id or a
        log-probability out of range gives NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> teacher = Head(jnp.ones((2, 3, 8)), jnp.eye(10, 8))
      >>> def loss(weight, hidden):
      ...     return linear_divergence(Head(hidden, weight), teacher, kind="jsd")
      >>> weight, hidden = jnp.zeros((10, 4)), jnp.ones((2, 3, 4))
      >>> bool(loss(weight, hidden) > 0), jax.grad(loss)(weight, hidden).shape
      (True, (10, 4))
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    share = as_number("beta", beta)
    if not 0 < share < 1:
        raise ValueError(f"beta must lie in (0, 1), got {share}")
    scale = as_number("temperature", temperature)
    if not 0 < scale < float("inf"):
        raise ValueError(f"temperature must be above 0, got {scale}")
    check_reduction(reduction)
    if isinstance(teacher, TopKTeacher) and kind != "forward":
        raise ValueError(f"kind must be 'forward' with a TopKTeacher, got {kind!r}")
    heads = [_checked("student", student)]
    if not isinstance(teacher, TopKTeacher):
        heads.append(_checked("teacher", teacher))
    tokens = math.prod(heads[0].hidden.shape[:-1])
    options = [
        check_options(0.0, 0.0, None, tiles, head.features_first, tokens)._replace(
            compute_dtype=check_compute_dtype(compute_dtype, head.hidden, head.weight)
        )
        for head in heads
    ]
    batch, sharding = heads[0].hidden.shape[:-1], as_sharding(sharding)
    token_weights = check_weights(token_weights, batch)
    sizes = [h.weight.shape[o.vocab_axis] for h, o in zip(heads, options, strict=True)]
    sharding.check(sizes[0], batch)
    arrays = [tuple(head[:3]) for head in heads]
    if isinstance(teacher, TopKTeacher):
        known = check_teacher(teacher, batch, sizes[0], token_weights)
        return _from_record(
            sharding, options[0], scale, reduction, *arrays, tuple(known), token_weights
        )
    if sizes[0] != sizes[1]:
        raise ValueError(f"teacher must have the student's {sizes[0]} classes, got {sizes[1]}")
    if heads[1].hidden.shape[:-1] != batch:
        raise ValueError(
            f"teacher must have hidden states for the student's tokens {batch}, got shape "
            f"{heads[1].hidden.shape}"
        )
    both = Both(kind, share, *options)
    return _divergence(sharding, both, scale, reduction, *arrays, token_weights)


def _checked(name: str, head: Any) -> Head:
    if not isinstance(head, tuple) or not 2 <= len(head) <= 4:
        raise TypeError(f"{name} must be a Head(hidden, weight, ...), got {type(head).__name__}")
    head = Head(*head)
    arrays = check_projection(head.hidden, head.weight, head.bias, head.features_first)
    return Head(*arrays, bool(head.features_first))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@jax.named_scope("linear_divergence")
def _divergence(
    sharding: VocabSharding,
    both: Both,
    temperature: float,
    reduction: str,
    student: tuple,
    teacher: tuple,
    token_weights: jax.Array | None,
) -> jax.Array:
    batch, accumulator = student[0].shape[:-1], both.student.accumulator(*student[:2])
    if not student[0].size:
        return jnp.zeros(batch if reduction == "none" else (), accumulator)
    if token_weights is not None:
        (token_weights,) = sharding.place_tokens(token_weights.astype(accumulator))
    scale = None if temperature == 1 else jnp.asarray(temperature, accumulator)
    heads = []
    for options, (hidden, weight, bias) in zip(both[2:], (student, teacher), strict=True):
        (hidden,) = sharding.place_tokens(hidden)
        heads.append(prepared(sharding, options, hidden, weight, bias, scale, token_weights))
    losses = divergence_per_token(sharding, both, heads[0], jax.lax.stop_gradient(heads[1]))
    return reduce_losses(losses, token_weights, reduction)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@jax.named_scope("linear_divergence")
def _from_record(
    sharding: VocabSharding,
    options: Options,
    temperature: float,
    reduction: str,
    student: tuple,
    teacher: tuple,
    token_weights: jax.Array | None,
) -> jax.Array:
    hidden, weight, bias = student
    batch, accumulator = hidden.shape[:-1], options.accumulator(hidden, weight)
    if not hidden.size:
        return jnp.zeros(batch if reduction == "none" else (), accumulator)
    if token_weights is not None:
        (token_weights,) = sharding.place_tokens(token_weights.astype(accumulator))
    hidden, *record = sharding.place_tokens(hidden, *teacher)
    scale = None if temperature == 1 else jnp.asarray(temperature, accumulator)
    student = prepared(sharding, options, hidden, weight, bias, scale, token_weights)
    vocab_size = weight.shape[options.vocab_axis]
    known = probabilities(TopKTeacher(*record), vocab_size, token_weights, accumulator)
    losses = top_k_divergence_per_token(sharding, options, student, *jax.lax.stop_gradient(known))
    return reduce_losses(losses, token_weights, reduction)
