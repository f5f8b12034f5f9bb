"""The sampled losses and their gradients by hand in NumPy's float64, which compiles nothing."""

import numpy as np
from scipy import special


def _slopes(kind, true, sampled, classes, calibration, score_regularization):
    """Losses [tokens], and their derivatives by the scores [tokens, num_true] and [..., sampled].

    A sampled score of -inf is none.
    """
    num_true = true.shape[1]
    if kind in ("softmax", "nce"):
        scores = np.concatenate([true, sampled], 1)
        if kind == "softmax":
            losses, slopes = special.logsumexp(scores, axis=1), special.softmax(scores, axis=1)
        else:
            losses, slopes = np.logaddexp(0, scores).sum(1), special.expit(scores)
        return losses - true.mean(1), slopes[:, :num_true] - 1 / num_true, slopes[:, num_true:]
    number = np.isfinite(sampled).sum(1, keepdims=True)
    if kind == "gbce":
        power = 1 - calibration * (1 - number / (classes - 1))
        noise = np.logaddexp(0, sampled).sum(1)
        losses = ((power * np.logaddexp(0, -true)).mean(1) + noise) / (number[:, 0] + 1)
        d_true = -power * special.expit(-true) / (number + 1) / num_true
        return losses, d_true, special.expit(sampled) / (number + 1)
    wrong = sampled[:, None] - true[:, :, None]
    if kind == "bpr":
        losses = (np.logaddexp(0, wrong).sum(2) / number).mean(1)
        slopes = special.expit(wrong) / number[:, None] / num_true
        return losses, -slopes.sum(2), slopes.sum(1)
    p, right = special.softmax(sampled, axis=1)[:, None], special.expit(-wrong)
    total, bend = (p * right).sum(2, keepdims=True), p * right * (1 - right)
    scores = np.where(np.isfinite(sampled), sampled, 0)
    penalty = (p[:, 0] * scores**2).sum(1, keepdims=True)
    losses = -np.log(total).mean((1, 2)) + score_regularization * penalty[:, 0]
    d_sampled = -((p * (right - total) - bend) / total).mean(1)
    d_sampled += score_regularization * p[:, 0] * (scores**2 - penalty + 2 * scores)
    return losses, -(bend / total).sum(2) / num_true, d_sampled


def sampled_loss(
    kind, hidden, weight, labels, samples, bias=None, *, subtract_log_q=True,
    remove_accidental_hits=True, calibration=0.75, score_regularization=1.0,
):  # fmt: skip
    """Losses [...], and what takes their cotangent to those of hidden, weight and bias.

    ``kind``: "softmax", "nce", "gbce", "bpr" or "bpr-max". As
    ``jaxnets.kernels.sampled_softmax.reference`` has them, which ``test_sampled.py`` compares;
    ``labels`` are [...] or [..., num_true].
    """
    hidden, weight = np.asarray(hidden, np.float64), np.asarray(weight, np.float64)
    bias = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    batch, flat = hidden.shape[:-1], hidden.reshape(-1, hidden.shape[-1])
    labels, of_labels = (
        np.asarray(a).reshape(len(flat), -1) for a in (labels, samples.labels_log_expected_count)
    )
    ids, of_ids = (
        np.broadcast_to(np.reshape(a, (-1, np.shape(a)[-1])), (len(flat), np.shape(a)[-1]))
        for a in (samples.ids, samples.log_expected_count)
    )
    classes = np.concatenate([labels, ids], 1)
    num_true = labels.shape[1]
    scores = np.einsum("tf,tcf->tc", flat, weight[classes]) + bias[classes]
    if subtract_log_q and kind in ("softmax", "nce"):
        scores -= np.concatenate([of_labels, of_ids], 1)
    true, sampled = scores[:, :num_true], scores[:, num_true:]
    if remove_accidental_hits:
        sampled = np.where((labels[:, :, None] == ids[:, None]).any(1), -np.inf, sampled)
    losses, *slopes = _slopes(kind, true, sampled, len(weight), calibration, score_regularization)
    slopes = np.concatenate(slopes, 1)

    def backward(d_losses):
        d_logits = np.broadcast_to(d_losses, batch).reshape(-1, 1) * slopes
        d_weight, d_bias = np.zeros_like(weight), np.zeros_like(bias)
        np.add.at(d_weight, classes, d_logits[..., None] * flat[:, None])
        np.add.at(d_bias, classes, d_logits)
        d_hidden = np.einsum("tc,tcf->tf", d_logits, weight[classes])
        return d_hidden.reshape(hidden.shape), d_weight, d_bias

    return losses.reshape(batch), backward


def token_by_token(
    kind, hidden, weight, labels, samples, bias, weights, *, ignored, reduction="mean", **options
):  # fmt: skip
    """Of a reduction: the value, and its gradients by hidden, weight, bias and tokens' weights.

    Each token, ``labels [tokens, num_true]``, by what is left of its labels and candidates: not
    those that are ``ignored``, or of a log-count of infinity. One of weight 0 is left out, as is
    one without labels, whatever stands in it; and who counts, [tokens] bool.
    """
    kept = (labels != ignored).any(1) & (weights != 0)
    total = weights[kept].sum() if reduction == "mean" else 1.0
    losses, of_hidden = np.zeros(len(hidden)), np.zeros(hidden.shape)
    of_weight, of_bias = np.zeros(weight.shape), np.zeros(bias.shape)
    shape = (*labels.shape[:1], np.shape(samples.ids)[-1])
    ids, counts = (np.broadcast_to(a, shape) for a in samples[:2])
    of_labels = np.reshape(samples.labels_log_expected_count, labels.shape)
    # A class that is never drawn is not corrected.
    counts, of_labels = (np.where(np.isneginf(a), 0, a) for a in (counts, of_labels))
    for token in np.flatnonzero(kept):
        true, there = labels[token] != ignored, ~np.isposinf(counts[token])
        own = samples._replace(
            ids=ids[token, there], log_expected_count=counts[token, there],
            labels_log_expected_count=of_labels[token, true][None],
        )  # fmt: skip
        (losses[token],), backward = sampled_loss(
            kind, hidden[token][None], weight, labels[token, true][None], own, bias, **options
        )
        of_hidden[token], *others = backward(weights[token] / total)
        of_weight, of_bias = of_weight + others[0], of_bias + others[1]
    value = (losses[kept] * weights[kept]).sum() / total
    of_weights = (losses - (value if reduction == "mean" else 0)) / total
    return value, (of_hidden, of_weight, of_bias, of_weights), kept
