"""Losses over all classes and their gradients by hand in NumPy's float64, which compiles nothing.

``test_exact.py`` compares :func:`exact_loss` with ``jaxnets.kernels.linear_softmax.reference``.
"""

from typing import NamedTuple

import numpy as np


class _Softmax(NamedTuple):
    inside: np.ndarray  # [vocab]
    logits: np.ndarray  # [..., vocab], capped
    log_sum_exp: np.ndarray  # [...]
    p: np.ndarray
    log_p: np.ndarray  # 0 of classes that are out

    # Cotangents of the logits to those of hidden, weight, bias and each token's temperature.
    pull: object


def _softmax(hidden, weight, bias, soft_cap, temperature, inside=None):
    hidden, weight = np.asarray(hidden, np.float64), np.asarray(weight, np.float64)
    bias = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    inside = ~np.isneginf(bias) if inside is None else inside
    temperature = np.asarray(temperature, np.float64)[..., None]
    logits = (hidden @ weight.T + np.where(inside, bias, 0)) / temperature
    bent = 0 if soft_cap is None else np.tanh(logits / soft_cap)
    capped = logits if soft_cap is None else soft_cap * bent
    largest = np.where(inside, capped, -np.inf).max(-1, keepdims=True)
    masses = np.where(inside, np.exp(capped - largest), 0)
    total = masses.sum(-1, keepdims=True)
    z = np.log(total) + largest

    def pull(d_logits):
        d_logits = d_logits * (1 - np.square(bent))
        d_temperature = -(d_logits * logits / temperature).sum(-1)
        rows = (d_logits / temperature).reshape(-1, len(weight))
        d_hidden = (rows @ weight).reshape(hidden.shape)
        return d_hidden, rows.T @ hidden.reshape(len(rows), -1), rows.sum(0), d_temperature

    log_p = np.where(inside, capped - z, 0)
    return _Softmax(inside, capped, z[..., 0], masses / total, log_p, pull)


def _each(*cotangents, like):
    return [np.broadcast_to(cotangent, like.shape)[..., None] for cotangent in cotangents]


def exact_loss(
    hidden, weight, labels, bias=None, *, label_smoothing=0.0, z_loss=0.0, soft_cap=None,
    temperature=1.0,
):  # fmt: skip
    """Losses and log-sum-exps [...], and what takes their cotangents to those of the arrays."""
    found, label = _softmax(hidden, weight, bias, soft_cap, temperature), np.asarray(labels)
    z, uniform = found.log_sum_exp, found.inside / found.inside.sum()
    right = np.take_along_axis(found.logits, label[..., None], -1)[..., 0]
    losses = z - (1 - label_smoothing) * right + z_loss * z**2
    losses -= label_smoothing * found.logits @ uniform
    target = (1 - label_smoothing) * np.eye(len(uniform))[label] + label_smoothing * uniform

    def backward(d_losses, d_z=0.0):
        """Cotangents of hidden, weight, bias and the temperature of each token."""
        d_losses, d_z = _each(d_losses, d_z, like=z)
        through_z = d_losses * (1 + 2 * z_loss * z[..., None]) + d_z
        return found.pull(through_z * found.p - d_losses * target)

    return losses, z, backward


def exact_log_probs(hidden, weight, labels, bias=None, *, soft_cap=None, temperature=1.0):
    """(Log-probabilities, entropies, log-sum-exps, best classes) [...], and ``backward``."""
    found, label = _softmax(hidden, weight, bias, soft_cap, temperature), np.asarray(labels)
    p, log_p, z = found.p, found.log_p, found.log_sum_exp
    log_prob = np.take_along_axis(log_p, label[..., None], -1)[..., 0]
    entropy = -(p * log_p).sum(-1)
    best = np.where(found.inside, found.logits, -np.inf).argmax(-1)

    def backward(d_log_prob, d_entropy=0.0, d_z=0.0):
        """Cotangents of hidden, weight, bias and the temperature of each token."""
        d_log_prob, d_entropy, d_z = _each(d_log_prob, d_entropy, d_z, like=z)
        onehot = np.eye(p.shape[-1])[label]
        bend = p * (log_p + entropy[..., None])
        return found.pull(d_log_prob * (onehot - p) + d_z * p - d_entropy * bend)

    return (log_prob, entropy, z, best), backward


def exact_divergence(kind, student, teacher, beta=0.5, temperature=1.0):
    """Divergences [...] of heads (hidden, weight, bias), and ``backward`` to the student's arrays.

    Classes that are out of the student are out of both.
    """
    ours = _softmax(*student, None, temperature)
    theirs = _softmax(*teacher, None, temperature, ours.inside)
    (q, log_q), (p, log_p) = ((each.p, each.log_p) for each in (ours, theirs))
    if kind == "forward":
        losses, slopes = (p * (log_p - log_q)).sum(-1), q - p
    elif kind == "reverse":
        losses = (q * (log_q - log_p)).sum(-1)
        slopes = q * (log_q - log_p - losses[..., None])
    else:
        log_m = np.log(np.where(ours.inside, beta * p + (1 - beta) * q, 1))
        of_q = (q * (log_q - log_m)).sum(-1)
        losses = beta * (p * (log_p - log_m)).sum(-1) + (1 - beta) * of_q
        slopes = (1 - beta) * q * (log_q - log_m - of_q[..., None])

    def backward(d_losses):
        (d_losses,) = _each(d_losses, like=losses)
        return ours.pull(d_losses * slopes)[:3]

    return losses, backward


def exact_top_k_divergence(student, ids, log_p, rest, temperature=1.0):
    """Forward divergences [...] from classes on record, the others as one, and ``backward``."""
    ours, p = _softmax(*student, None, temperature), np.exp(log_p)
    q, vocab_size = ours.p, ours.p.shape[-1]
    named = np.take_along_axis(q, ids, -1)
    known = named.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        last = np.where(rest == 0, 0, rest * (np.log(rest) - np.log(1 - known)))
    losses = (p * (log_p - np.log(named))).sum(-1) + last
    onehots = np.eye(vocab_size)[ids]
    of_named, is_named = (p[..., None] * onehots).sum(-2), onehots.sum(-2)
    by_rest = (rest / (1 - known))[..., None] * (is_named - known[..., None])
    slopes = q * (p.sum(-1, keepdims=True) + by_rest) - of_named

    def backward(d_losses):
        (d_losses,) = _each(d_losses, like=losses)
        return ours.pull(d_losses * slopes)[:3]

    return losses, backward
