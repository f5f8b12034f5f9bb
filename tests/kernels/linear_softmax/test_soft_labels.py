"""Several labels a token with weights: the weighted sum of the losses of each."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxnets.kernels import Tiles, VocabSharding, checked_loss, linear_softmax_cross_entropy
from tests.exact_loss import exact_loss

BATCH, FEATURES, VOCAB, N = (2, 5), 4, 24, 3
RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(*BATCH, FEATURES))
WEIGHT = RANDOM.normal(size=(VOCAB, FEATURES))
BIAS = RANDOM.normal(size=VOCAB)
BIAS[20] = -np.inf
LABELS = RANDOM.integers(0, 20, (*BATCH, N)).astype(np.int16)
LABELS[1, 1] = 7  # one class twice and more: its weights add up
SHARES = RANDOM.dirichlet(np.ones(N), BATCH) * RANDOM.uniform(0.3, 1.0, (*BATCH, 1))
BY_TOKEN = np.linspace(1.0, 2.0, 10).reshape(BATCH)
# What is left out: a label by its weight and one by its id, and a token by each.
SHARES[0, 1, 2] = SHARES[0, 3] = 0
LABELS[0, 1, 2], LABELS[0, 3], LABELS[1, 0, 0], LABELS[1, 4] = 99, -5, -1, -1
HIDDEN[0, 3] = HIDDEN[1, 4] = np.nan
COUNTS = (SHARES != 0) & (LABELS != -1)
KEPT = COUNTS.any(-1)
TILES = Tiles(token_tile=4, vocab_tile=7)
EACH = np.linspace(0.5, 2.0, 10).reshape(BATCH)
CASES = [
    {"reduction": "mean", "label_smoothing": 0.2, "z_loss": 1e-2, "temperature": EACH},
    {"reduction": "none", "label_smoothing": 0.2, "soft_cap": 2.0},
]


def ours(options, hidden, weight, bias, by_token, features_first=False, **more):
    losses = linear_softmax_cross_entropy(
        hidden, weight.T if features_first else weight, LABELS, label_weights=SHARES, bias=bias,
        token_weights=by_token, ignore_index=-1, features_first=features_first,
        **{"tiles": TILES, **options, **more},
    )  # fmt: skip
    return (losses * jnp.cos(jnp.arange(losses.size).reshape(losses.shape))).sum()


def by_hand(options):
    """The value of ``ours`` and its gradients by its four arrays, in NumPy."""
    options = dict(options)
    reduction, shares = options.pop("reduction"), np.where(COUNTS, SHARES, 0)
    each = np.asarray(options.pop("temperature", 1.0))[..., None]
    hidden = np.broadcast_to(
        np.where(KEPT[..., None], HIDDEN, 0)[..., None, :], (*BATCH, N, FEATURES)
    )
    found, _, backward = exact_loss(
        hidden, WEIGHT, np.where(COUNTS, LABELS, 0), BIAS,
        temperature=np.broadcast_to(each, LABELS.shape), **options,
    )  # fmt: skip
    losses, total = (shares * found).sum(-1), (KEPT * BY_TOKEN).sum()
    factors = np.cos(np.arange(10.0)).reshape(BATCH) if reduction == "none" else 1 / total
    value = (factors * losses * BY_TOKEN).sum()
    d_hidden, d_weight, d_bias, _ = backward((factors * BY_TOKEN)[..., None] * shares)
    by_token = factors * losses - (value / total * KEPT if reduction == "mean" else 0)
    return value, (d_hidden.sum(-2), d_weight, d_bias, by_token)


def test_values_and_gradients(x64):
    """In one pass and in two, in both layouts, with every kind of label that is left out."""

    found = jax.jit(
        lambda *arrays: [
            jax.value_and_grad(partial(ours, case, features_first=i == 0), (0, 1, 2, 3))(*arrays)
            for i, case in enumerate(CASES)
        ]
    )(HIDDEN, WEIGHT, BIAS, BY_TOKEN)
    for got, case in zip(found, CASES, strict=True):
        wanted = by_hand(case)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def float32(*arrays):
    return tuple(np.asarray(a, np.float32) for a in arrays)


def test_over_devices():
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(AxisType.Explicit,) * 2)
    arrays = float32(HIDDEN, WEIGHT, BIAS, BY_TOKEN)
    rows = [jax.device_put(arrays[0], jax.NamedSharding(mesh, jax.P("data"))), *arrays[1:]]

    case = {"reduction": "mean", "label_smoothing": 0.2}
    split = VocabSharding(mesh, "vocab", "data")
    here = {"sharding": split, "tiles": Tiles(5, 6)}  # all that a device has
    got = jax.jit(jax.value_and_grad(lambda *a: ours(case, *a, **here), (0, 1, 2)))(*arrays)
    wanted = by_hand(case)
    for a, b in zip(jax.tree.leaves(got), (wanted[0], *wanted[1][:3]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    of_rows = jax.jit(lambda *a: ours(case, *a))(*rows)
    np.testing.assert_allclose(of_rows, wanted[0], rtol=1e-5)


def test_labels_cost_no_product_and_no_memory():
    """Three matmuls in one pass, two for the shift, and never whole logits."""
    shapes = [((512, 16), "float32"), ((2048, 16), "float32")]
    shapes = [
        jax.ShapeDtypeStruct(*s) for s in (*shapes, ((512, 9), "int32"), ((512, 9), "float32"))
    ]

    def loss(hidden, weight, labels, shares):
        tiles = Tiles(token_tile=128, vocab_tile=1024)
        return linear_softmax_cross_entropy(
            hidden, weight, labels, label_weights=shares, tiles=tiles
        )

    program = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes)
    products = re.findall(
        r"dot_general .* : \(tensor<\d+x\d+xf32>, tensor<\d+x\d+xf32>\)", program.as_text()
    )
    assert len(products) == 5
    tile = 4 * 128 * 2048  # of logits, of which there would be four
    assert program.compile().memory_analysis().temp_size_in_bytes < 3 * tile


def test_what_only_values_tell(users_checks):
    hidden, weight = np.nan_to_num(float32(HIDDEN, WEIGHT)[0]), float32(WEIGHT)[0]
    labels, shares = np.where(COUNTS, LABELS, 0), np.where(COUNTS, SHARES, 0).astype(np.float32)
    bad_labels, bad_shares = labels.copy(), shares.copy()
    bad_labels[0, 2, 1], bad_shares[1, 2, 0] = VOCAB, -0.5

    def loss(labels, shares, **options):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, label_weights=shares, reduction="none", **options
        )

    assert np.argwhere(np.isnan(jax.jit(loss)(bad_labels, bad_shares))).tolist() == [[0, 2], [1, 2]]
    error, _ = jax.jit(checked_loss(linear_softmax_cross_entropy))(
        hidden, weight, np.where(COUNTS, labels, -7), label_weights=shares
    )
    error.throw()
    for arguments, options, message in (
        ((bad_labels, shares), {}, r"labels must lie in \[0, vocab_size\) = \[0, 24\), got 24"),
        ((labels, bad_shares), {}, "label_weights must be at least 0, got -0.5"),
        ((labels[..., 0], shares), {}, r"labels must be \[..., n\] with label_weights"),
        ((labels, shares[..., :2]), {}, "label_weights must have one value a label"),
        ((labels, shares), {"implementation": "pallas"}, "implementation must be 'tiled' or None"),
        ((labels, shares), {"class_weights": np.ones(VOCAB)}, "without label_weights"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(*arguments, **options)
