"""What a split batch gives, and its gradients, by hand in NumPy, which compiles nothing.

Each takes a batch and tables by name, and returns the results and the gradients, by name, of the
sum of the sines of all floats among them.
"""

import jax
import numpy as np

from tests import recurrence, tape
from tests.exact_loss import exact_loss


def softmax_functions(batch, tables):
    """The best classes, ranks, and losses within the batch and over the rows of its labels."""
    hidden, weight, bias = (np.float64(a) for a in (batch["hidden"], *map(tables.get, _TABLES)))
    labels, vocab_size = batch["labels"], len(weight)
    logits = hidden @ weight.T + bias
    onehot = np.eye(vocab_size)
    seen = np.where(onehot[labels], -np.inf, logits)
    ids = np.argsort(-seen, axis=-1)[..., :3]
    best = np.take_along_axis(seen, ids, -1)
    d_logits = (onehot[ids] * np.cos(best)[..., None]).sum(-2)

    own = np.take_along_axis(logits, labels[..., None], -1)
    others = (onehot[labels] + onehot[labels // 2]) == 0
    rank = (others & (logits > own)).sum(-1), (others & (logits == own)).sum(-1)

    queries, items, of_items = hidden[:, 0], hidden[:, 1], labels[:, 0] % 5
    pairs = np.eye(len(queries))
    scores = queries @ items.T
    scores[(of_items[:, None] == of_items) & (pairs == 0)] = -np.inf
    p = np.exp(scores)
    p /= p.sum(1, keepdims=True)
    in_batch = -np.log(np.diagonal(p)).mean()
    d_scores = np.cos(in_batch) * (p - pairs) / len(pairs)

    # Each label once; the last row, again and again, fills up.
    distinct = np.unique(labels)
    row_ids = np.pad(distinct, (0, labels.size - distinct.size), constant_values=vocab_size - 1)
    losses, _, backward = exact_loss(hidden, weight[row_ids], np.searchsorted(distinct, labels))
    d_hidden, d_rows, *_ = backward(np.cos(losses.sum()))
    dense = np.zeros_like(weight)
    dense[distinct] = weight[distinct]

    d_hidden += d_logits @ weight
    d_hidden[:, 0] += d_scores @ items
    d_hidden[:, 1] += d_scores.T @ queries
    flat = d_logits.reshape(-1, vocab_size)
    d_weight = flat.T @ hidden.reshape(len(flat), -1)
    np.add.at(d_weight, row_ids, d_rows)
    d_weight[distinct] += np.cos(dense[distinct])
    found = (best, ids), rank, in_batch, losses.sum(), dense
    return found, {"hidden": d_hidden, "weight": d_weight, "bias": flat.sum(0)}


_TABLES = "weight", "bias"


def _recurrent(inputs, carry, parameters, **options):
    arguments = tape.tracked((inputs, carry, parameters))
    results = recurrence.steps(*arguments, **options)
    values = jax.tree.map(tape.array_of, results)
    slopes = jax.tree.map(np.cos, values)
    return values, tape.gradients(results, slopes, arguments)


def layers(batch, tables):
    """An LSTM, time first, a GRU, and both convolutions."""
    dropout = {name: batch[name] for name in ("recurrent_dropout", "key")}
    inputs, images = batch["sequences"], np.float64(batch["images"])
    h = np.zeros((len(inputs), 4))
    (outputs, carry), of_lstm = _recurrent(
        inputs, (h, h), tables["lstm"], mask=batch["mask"], **dropout
    )
    backward, of_gru = _recurrent(inputs, h, tables["gru"], lengths=batch["lengths"], reverse=True)

    before = images @ tables["pointwise"]
    d_before = np.cos(before) * (before > 0)
    d_images = d_before @ tables["pointwise"].T
    d_pointwise = np.einsum("bijf,bijo->fo", images, d_before)

    kernel, (rows, columns) = tables["depthwise"], images.shape[1:3]
    padded, around = (np.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0))) for a in (images, images * 0))
    windows = {
        place: np.s_[:, place[0] : place[0] + rows, place[1] : place[1] + columns]
        for place in np.ndindex(3, 3)
    }
    depthwise = sum(padded[window] * kernel[place] for place, window in windows.items())
    d_depthwise = np.zeros(kernel.shape)
    for place, window in windows.items():
        d_depthwise[place] = (padded[window] * np.cos(depthwise)).sum((0, 1, 2))
        around[window] += np.cos(depthwise) * kernel[place]
    d_images += around[:, 1:-1, 1:-1]

    found = (outputs.swapaxes(0, 1), carry), backward, np.maximum(before, 0), depthwise
    return found, {
        "sequences": of_lstm[0] + of_gru[0], "images": d_images, "lstm": of_lstm[2],
        "gru": of_gru[2], "pointwise": d_pointwise, "depthwise": d_depthwise,
    }  # fmt: skip
