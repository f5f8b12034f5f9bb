"""Divergences between two linear heads, for distillation: the public function and its equation.

``xla_divergence_one_pass.py`` computes their mean or sum, ``xla_divergence.py`` those of each token
or with labels, and ``xla_top_k_divergence.py`` that from a teacher on record.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, SupportsFloat, SupportsIndex, get_args, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels.checks import as_number
from jaxnets.kernels.linear_softmax.checks import (
    check_compute_dtype,
    check_num_classes,
    check_options,
    check_precision,
    check_temperature,
    known_as_kept,
    sizes_of,
)
from jaxnets.kernels.linear_softmax.projection import factors_by_reduction, prepared, scale_of
from jaxnets.kernels.linear_softmax.tile_sizes import Sizes, Tiles
from jaxnets.kernels.linear_softmax.tiles import Options
from jaxnets.kernels.linear_softmax.top_k_teacher import (
    TopKTeacher,
    check_teacher,
    probabilities,
)
from jaxnets.kernels.linear_softmax.xla_divergence import Both, divergence_per_token
from jaxnets.kernels.linear_softmax.xla_divergence_one_pass import weighted_divergence
from jaxnets.kernels.linear_softmax.xla_top_k_divergence import top_k_divergence_per_token
from jaxnets.kernels.losses import (
    Reduction,
    check_ignore_index,
    check_labels,
    check_projection,
    check_reduction,
    check_weights,
    leave_out,
    reduce_losses,
    vocab_size_of,
)
from jaxnets.kernels.numerics import accumulator_dtype
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


class DivergenceAndCrossEntropy(NamedTuple):
    """What :func:`linear_divergence` returns with ``labels``: scalars, or [...] for "none".

    Attributes:
      divergence: of the student from the teacher, as it is without labels.
      cross_entropy: of the labels by the student's logits, without the temperature.

    Example:
      >>> import jax.numpy as jnp
      >>> head = Head(jnp.ones((2, 4)), jnp.eye(8, 4))
      >>> found = linear_divergence(head, head, labels=jnp.array([3, 5]))
      >>> bool(jnp.isclose(found.divergence, 0, atol=1e-6)), found.cross_entropy.shape
      (True, ())
    """

    divergence: jax.Array
    cross_entropy: jax.Array


@overload
def linear_divergence(
    student: Head | tuple,
    teacher: Head | TopKTeacher | tuple,
    *,
    labels: None = ...,
    ignore_index: None = ...,
    kind: Kind = ...,
    beta: SupportsFloat = ...,
    temperature: ArrayLike | Sequence = ...,
    num_classes: SupportsIndex | None = ...,
    token_weights: ArrayLike | Sequence | None = ...,
    reduction: Reduction = ...,
    compute_dtype: DTypeLike | None = ...,
    precision: lax.Precision | str | None = ...,
    tiles: Tiles | None = ...,
    sharding: VocabSharding | None = ...,
) -> jax.Array: ...


@overload
def linear_divergence(
    student: Head | tuple,
    teacher: Head | TopKTeacher | tuple,
    *,
    labels: ArrayLike | Sequence,
    ignore_index: SupportsIndex | None = ...,
    kind: Kind = ...,
    beta: SupportsFloat = ...,
    temperature: ArrayLike | Sequence = ...,
    num_classes: SupportsIndex | None = ...,
    token_weights: ArrayLike | Sequence | None = ...,
    reduction: Reduction = ...,
    compute_dtype: DTypeLike | None = ...,
    precision: lax.Precision | str | None = ...,
    tiles: Tiles | None = ...,
    sharding: VocabSharding | None = ...,
) -> DivergenceAndCrossEntropy: ...


def linear_divergence(
    student: Head | tuple,
    teacher: Head | TopKTeacher | tuple,
    *,
    labels: Integer[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    kind: Kind = "forward",
    beta: SupportsFloat = 0.5,
    temperature: Shaped[ArrayLike, ""] | Shaped[ArrayLike, "*batch"] | Sequence = 1.0,
    num_classes: SupportsIndex | None = None,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    reduction: Reduction = "mean",
    compute_dtype: DTypeLike | None = None,
    precision: lax.Precision | str | None = None,
    tiles: Tiles | None = None,
    sharding: VocabSharding | None = None,
) -> Float[Array, "..."] | DivergenceAndCrossEntropy:
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
      labels: [...], integers of any width in [0, vocab_size), or ``ignore_index``: the student's
        cross-entropy of them is given too, from the same passes over its logits, which are not
        divided by the temperature there.
      ignore_index: a label that leaves its token out of both.
      kind: "forward", "reverse" or "jsd".
      beta: in (0, 1), of "jsd".
      temperature: above 0, one for all tokens or [...], one a token, without a gradient; the
        logits of both are divided by it. What is on record is taken as it is.
      num_classes: how many rows of both tables are classes, the others being padding; None: all.
      token_weights: [...], a factor for each token; 0 (or False) leaves the token out.
      reduction: "mean" (by weight), "sum" or "none" (one a token).
      compute_dtype, precision, tiles: as of :func:`linear_softmax_cross_entropy`, of both heads. A
        mean or a sum without labels takes one pass, and of both heads a temporary of [token_tile,
        vocab]; else it is two, and none.
      sharding: over which axes classes and tokens are split, of both heads alike.

    Returns:
      The divergence in nats, a scalar or [...] for "none", float32 (float64 for float64 input);
      with ``labels`` :class:`DivergenceAndCrossEntropy`.

    Raises:
      TypeError: float labels, or integer hidden states, weights, biases or ``compute_dtype``.
      ValueError: shapes that do not fit, heads of different vocabularies or tokens, an option out
        of its range, an ``ignore_index`` without labels, or labels or what is on record where their
        values are known. Under ``jit`` a label, an id or a log-probability out of range gives NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> teacher = Head(jnp.ones((2, 3, 8)), jnp.eye(10, 8))
      >>> def loss(weight, hidden):
      ...     return linear_divergence(Head(hidden, weight), teacher, kind="jsd")
      >>> weight, hidden = jnp.zeros((10, 4)), jnp.ones((2, 3, 4))
      >>> value, gradient = jax.jit(jax.value_and_grad(loss))(weight, hidden)
      >>> bool(value > 0), gradient.shape
      (True, (10, 4))

      With labels the loss of Hinton et al., equal parts of both. The divergence's gradient shrinks
      as 1 / temperature^2, for which it is the caller who makes up (section 2.1):

      >>> def distilled(weight, hidden, labels, temperature=2.0):
      ...     found = linear_divergence(
      ...         Head(hidden, weight), teacher, labels=labels, temperature=temperature
      ...     )
      ...     return 0.5 * temperature**2 * found.divergence + 0.5 * found.cross_entropy
      >>> jax.jit(jax.grad(distilled))(weight, hidden, jnp.zeros((2, 3), jnp.int32)).shape
      (10, 4)
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    share = as_number("beta", beta)
    if not 0 < share < 1:
        raise ValueError(f"beta must lie in (0, 1), got {share}")
    check_reduction(reduction)
    if isinstance(teacher, TopKTeacher) and kind != "forward":
        raise ValueError(f"kind must be 'forward' with a TopKTeacher, got {kind!r}")
    heads = [_checked("student", student)]
    if not isinstance(teacher, TopKTeacher):
        heads.append(_checked("teacher", teacher))
    sharding = as_sharding(sharding)
    options = [
        check_options(
            0.0, 0.0, None, tiles, head.features_first, _sizes_of(head, sharding, len(heads))
        )._replace(
            compute_dtype=check_compute_dtype(compute_dtype, head.hidden, head.weight),
            precision=check_precision(precision),
            num_classes=check_num_classes(
                num_classes, vocab_size_of(head.weight, head.features_first)
            ),
        )
        for head in heads
    ]
    batch = heads[0].hidden.shape[:-1]
    sizes = [h.weight.shape[o.vocab_axis] for h, o in zip(heads, options, strict=True)]
    classes = options[0].classes(sizes[0])
    token_weights = check_weights(token_weights, batch)
    ignore_index = check_ignore_index(ignore_index)
    if labels is not None:
        labels = check_labels(labels, batch, classes, ignore_index, token_weights)
    elif ignore_index is not None:
        raise ValueError(f"ignore_index must come with labels, got {ignore_index} without")
    kept = known_as_kept(batch, labels, ignore_index, token_weights)
    divisor = check_temperature(temperature, batch, kept)
    sharding.check(sizes[0], batch)
    arrays = [tuple(head[:3]) for head in heads]
    if isinstance(teacher, TopKTeacher):
        arrays.append(tuple(check_teacher(teacher, batch, classes, kept)))
    else:
        if sizes[0] != sizes[1]:
            raise ValueError(f"teacher must have the student's {sizes[0]} classes, got {sizes[1]}")
        if heads[1].hidden.shape[:-1] != batch:
            raise ValueError(
                f"teacher must have hidden states for the student's tokens {batch}, got shape "
                f"{heads[1].hidden.shape}"
            )
    found = _divergence(
        sharding, kind, share, tuple(options), reduction, ignore_index,
        *arrays, labels, token_weights, divisor,
    )  # fmt: skip
    return found[0] if labels is None else DivergenceAndCrossEntropy(*found)


def _sizes_of(head: Head, sharding: VocabSharding, heads: int) -> Sizes:
    """What tiles are chosen for: one pass keeps the logits of all heads, in what sums are kept."""
    kept = accumulator_dtype(head.hidden, head.weight)
    sizes = sizes_of(head.hidden, head.weight, head.features_first, sharding, kept)
    return sizes._replace(heads=heads)


def _checked(name: str, head: Any) -> Head:
    if not isinstance(head, tuple) or not 2 <= len(head) <= 4:
        raise TypeError(f"{name} must be a Head(hidden, weight, ...), got {type(head).__name__}")
    head = Head(*head)
    arrays = check_projection(head.hidden, head.weight, head.bias, head.features_first)
    return Head(*arrays, bool(head.features_first))


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
@jax.named_scope("linear_divergence")
def _divergence(
    sharding: VocabSharding,
    kind: str,
    beta: float,
    options: tuple[Options, ...],
    reduction: str,
    ignore_index: int | None,
    student: tuple,
    teacher: tuple,
    labels: jax.Array | None,
    token_weights: jax.Array | None,
    temperature: jax.Array | None,
) -> list[jax.Array | None]:
    """The divergence and, with labels, the cross-entropy; ``options`` of each head there is."""
    batch, accumulator = student[0].shape[:-1], options[0].accumulator(*student[:2])
    vocab_size = student[1].shape[options[0].vocab_axis]
    if not student[0].size:
        nothing = jnp.zeros(batch if reduction == "none" else (), accumulator)
        return [nothing, nothing]
    kept = None if token_weights is None else token_weights.astype(accumulator)
    kept, labels = sharding.place_tokens(kept, labels)
    if labels is not None:
        kept, labels = leave_out(
            kept, labels, ignore_index, vocab_size, accumulator, options[0].num_classes
        )
    scale = scale_of(sharding, temperature, kept, batch, accumulator)

    def ready(options, hidden, weight, bias):
        (hidden,) = sharding.place_tokens(hidden)
        return prepared(sharding, options, hidden, weight, bias, None, kept)

    head, scale = ready(options[0], *student), lax.stop_gradient(scale)
    if len(options) == 1:
        record = TopKTeacher(*sharding.place_tokens(*teacher))
        classes = options[0].classes(vocab_size)
        known = lax.stop_gradient(probabilities(record, classes, kept, accumulator))
        losses = top_k_divergence_per_token(sharding, options[0], head, known, scale, labels)
    else:
        other = lax.stop_gradient(ready(options[1], *teacher))
        both = Both(kind, beta, *options)
        if labels is None and reduction != "none":
            factors = factors_by_reduction(sharding, kept, batch, reduction, accumulator)
            return [weighted_divergence(sharding, both, head, other, scale, factors), None]
        losses = divergence_per_token(sharding, both, head, other, scale, labels)
    return [a if a is None else reduce_losses(a, kept, reduction) for a in losses]
