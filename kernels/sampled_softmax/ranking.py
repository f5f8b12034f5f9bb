"""The losses that recommenders are trained with: a true item above sampled ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex

import jax
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels.checks import as_int, as_number
from jaxnets.kernels.losses import Reduction, check_projection, vocab_size_of
from jaxnets.kernels.sampled_softmax.api import sampled_loss
from jaxnets.kernels.sampled_softmax.candidates import Options
from jaxnets.kernels.sampled_softmax.xla_ranking import bpr, bpr_max, generalized_bce, ranking
from jaxnets.kernels.samplers.samples import Samples
from jaxnets.kernels.vocab_sharding import VocabSharding


@jax.named_scope("gbce_loss")
def gbce_loss(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "..."] | Sequence,
    samples: Samples | tuple,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    calibration: SupportsFloat = 0.75,
    vocab_size: SupportsIndex | None = None,
    remove_accidental_hits: bool = True,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    reduction: Reduction = "mean",
    features_first: bool = False,
    sharding: VocabSharding | None = None,
) -> Float[Array, "..."]:
    r"""Generalized binary cross-entropy: sampled BCE without its overconfidence.

    .. math::
        \text{loss} = -\frac{1}{k + 1} \Big(\beta \log \sigma(o_y)
        + \sum_{j \in S} \log(1 - \sigma(o_j))\Big), \qquad
        \beta = \alpha \Big(t \big(1 - \tfrac{1}{\alpha}\big) + \tfrac{1}{\alpha}\Big),
        \qquad \alpha = \frac{k}{n - 1}

    with :math:`o_i = w_i \cdot h + b_i` and k uniform samples S of n classes (Petrov and
    Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with
    Negative Sampling", section 5). With t = 0 it is the BCE of SASRec over k samples, which learns
    :math:`\sigma(o_y) > p(y)`; with t = 1 it learns :math:`\sigma(o_y) = p(y)`, provided that
    samples are drawn from :class:`jaxnets.kernels.Uniform`.

    Arguments, result and errors are those of
    :func:`jaxnets.kernels.sampled_softmax_cross_entropy`, without log Q. k is the number of samples
    that a token has, without hits and what a mask leaves out. Of several true classes each has a
    loss of its own, and the token their mean.

    Args:
      calibration: t in [0, 1]; 0.75, the authors', is for 256 samples.
      vocab_size: n, at least 1, where ``weight`` holds a part of the classes only, as the rows of
        :func:`jaxnets.kernels.gather_rows`; None: as many as ``weight``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import Uniform, draw_samples
      >>> labels = jnp.array([3, 5])
      >>> samples = draw_samples(Uniform(50), jax.random.key(0), 50, labels)
      >>> loss = gbce_loss(jnp.ones((2, 4)), jnp.zeros((50, 4)), labels, samples)
      >>> bool(jnp.isclose(loss, jnp.log(2.0)))
      True
    """
    calibration = as_number("calibration", calibration)
    if not 0 <= calibration <= 1:
        raise ValueError(f"calibration must lie in [0, 1], got {calibration}")
    if vocab_size is None:
        _, weight, _ = check_projection(hidden, weight, bias, features_first)
        vocab_size = vocab_size_of(weight, features_first)
    return sampled_loss(
        ranking(generalized_bce, calibration, as_int("vocab_size", vocab_size, 1)),
        Options(False, bool(remove_accidental_hits), bool(features_first)), sharding,
        hidden, weight, bias, labels, samples, token_weights, reduction, ignore_index,
    )  # fmt: skip


@jax.named_scope("bpr_loss")
def bpr_loss(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "..."] | Sequence,
    samples: Samples | tuple,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    remove_accidental_hits: bool = True,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    reduction: Reduction = "mean",
    features_first: bool = False,
    sharding: VocabSharding | None = None,
) -> Float[Array, "..."]:
    r"""Bayesian personalized ranking: the true item above each sampled one.

    .. math:: \text{loss} = -\frac{1}{|S|} \sum_{j \in S} \log \sigma(o_y - o_j)

    with :math:`o_i = w_i \cdot h + b_i` (Rendle et al. 2009, "BPR: Bayesian Personalized Ranking
    from Implicit Feedback", section 4.1, as a mean over several samples). A bias that all items
    share changes nothing: only differences are learned.

    Arguments, result and errors are those of
    :func:`jaxnets.kernels.sampled_softmax_cross_entropy`, without log Q. A token without samples,
    all of them hits for example, has a loss of 0. Of several true classes each has a loss of its
    own, and the token their mean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import Uniform, draw_samples
      >>> hidden, weight = jnp.ones((2, 3, 8)), jnp.zeros((1000, 8))
      >>> labels = jnp.zeros((2, 3), jnp.int32)
      >>> samples = draw_samples(Uniform(1000), jax.random.key(0), 64, labels, unique=False)
      >>> loss = bpr_loss(hidden, weight, labels, samples)
      >>> bool(jnp.isclose(loss, jnp.log(2.0)))
      True
    """
    return sampled_loss(
        ranking(bpr),
        Options(False, bool(remove_accidental_hits), bool(features_first)), sharding,
        hidden, weight, bias, labels, samples, token_weights, reduction, ignore_index,
    )  # fmt: skip


@jax.named_scope("bpr_max_loss")
def bpr_max_loss(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "..."] | Sequence,
    samples: Samples | tuple,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    score_regularization: SupportsFloat = 1.0,
    remove_accidental_hits: bool = True,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    reduction: Reduction = "mean",
    features_first: bool = False,
    sharding: VocabSharding | None = None,
) -> Float[Array, "..."]:
    r"""BPR-max: the true item above the best of the sampled ones, softly.

    .. math::
        \text{loss} = -\log \sum_{j \in S} s_j \, \sigma(o_y - o_j)
        + \lambda \sum_{j \in S} s_j o_j^2, \qquad
        s_j = \frac{e^{o_j}}{\sum_{i \in S} e^{o_i}}, \qquad o_i = w_i \cdot h + b_i

    (Hidasi and Karatzoglou 2018, "Recurrent Neural Networks with Top-k Gains for Session-based
    Recommendations", section 3.3.2). Unlike that of :func:`bpr_loss` its gradient does not vanish
    as samples grow: samples far below the best have little weight.

    Arguments, result and errors are those of
    :func:`jaxnets.kernels.sampled_softmax_cross_entropy`, without log Q. A token without samples,
    all of them hits for example, has a loss of 0. Of several true classes each has a loss of its
    own, and the token their mean.

    Args:
      score_regularization: lambda, at least 0; 1 is the default of the authors' GRU4Rec.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import Uniform, draw_samples
      >>> hidden, weight = jnp.ones((2, 3, 8)), jnp.zeros((1000, 8))
      >>> labels = jnp.zeros((2, 3), jnp.int32)
      >>> samples = draw_samples(Uniform(1000), jax.random.key(0), 64, labels, unique=False)
      >>> loss = bpr_max_loss(hidden, weight, labels, samples)
      >>> bool(jnp.isclose(loss, jnp.log(2.0)))
      True
    """
    regularization = as_number("score_regularization", score_regularization)
    if not 0 <= regularization < math.inf:
        raise ValueError(f"score_regularization must be at least 0, got {regularization}")
    return sampled_loss(
        ranking(bpr_max, regularization),
        Options(False, bool(remove_accidental_hits), bool(features_first)), sharding,
        hidden, weight, bias, labels, samples, token_weights, reduction, ignore_index,
    )  # fmt: skip
