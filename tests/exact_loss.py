"""The exact loss and its gradients by hand in NumPy's float64, which compiles nothing."""

import numpy as np


def exact_loss(
    hidden, weight, labels, bias=None, *, label_smoothing=0.0, z_loss=0.0, soft_cap=None,
    temperature=1.0,
):  # fmt: skip
    """Losses and log-sum-exps [...], and what takes their cotangents to those of the arrays.

    As ``jaxnets.kernels.linear_softmax.reference`` has them, which ``test_exact.py`` compares.
    """
    hidden, weight = np.asarray(hidden, np.float64), np.asarray(weight, np.float64)
    bias = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    inside, label = ~np.isneginf(bias), np.asarray(labels)[..., None]
    temperature = np.asarray(temperature, np.float64)[..., None]
    logits = (hidden @ weight.T + np.where(inside, bias, 0)) / temperature
    bent = 0 if soft_cap is None else np.tanh(logits / soft_cap)
    capped = logits if soft_cap is None else soft_cap * bent
    uniform = inside / inside.sum()
    largest = np.where(inside, capped, -np.inf).max(-1, keepdims=True)
    masses = np.where(inside, np.exp(capped - largest), 0)
    total = masses.sum(-1, keepdims=True)
    z = (np.log(total) + largest)[..., 0]
    right = np.take_along_axis(capped, label, -1)[..., 0]
    losses = z - (1 - label_smoothing) * right - label_smoothing * capped @ uniform + z_loss * z**2
    target = (1 - label_smoothing) * np.eye(len(weight))[label[..., 0]] + label_smoothing * uniform

    def backward(d_losses, d_z=0.0):
        """Cotangents of hidden, weight, bias and the temperature of each token."""
        d_losses, d_z = (np.broadcast_to(d, z.shape)[..., None] for d in (d_losses, d_z))
        through_z = d_losses * (1 + 2 * z_loss * z[..., None]) + d_z
        d_logits = (through_z * masses / total - d_losses * target) * (1 - np.square(bent))
        d_temperature = -(d_logits * logits / temperature).sum(-1)
        rows = (d_logits / temperature).reshape(-1, len(weight))
        d_hidden = (rows @ weight).reshape(hidden.shape)
        return d_hidden, rows.T @ hidden.reshape(len(rows), -1), rows.sum(0), d_temperature

    return losses, z, backward
