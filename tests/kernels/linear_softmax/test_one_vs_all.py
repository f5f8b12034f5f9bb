"""The one-vs-all logistic loss over all classes, by tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy import special

from jaxnets.kernels import Tiles, VocabSharding, linear_sigmoid_cross_entropy
from jaxnets.kernels.linear_softmax import reference
from tests.near import assert_near
from tests.slopes import assert_backward

VOCAB, FEATURES = 12, 4
DRAW = np.random.default_rng(0)
HIDDEN = DRAW.normal(size=(2, 3, FEATURES))
WEIGHT, BIAS = 2 * DRAW.normal(size=(VOCAB, FEATURES)), DRAW.normal(size=VOCAB)
BIAS[8] = -np.inf  # a class that is out
INSIDE = np.isfinite(BIAS)
# Unsorted, padded, named twice, all of it padding; the last token is left out, label and all.
LABELS = np.array([[[7, 2, 11], [5, -1, 5], [-1, -1, -1]], [[0, 11, 4], [-1, 3, -1], [99, 1, -7]]])
WEIGHTS = np.array([[1.0, 2.0, 0.5], [1.0, 3.0, 0.0]])
OF_LABELS = DRAW.uniform(0.5, 2, LABELS.shape)
OF_LABELS[0, 0, 1] = 0  # class 2 is neither true nor false
FACTORS = np.cos(np.arange(6)).reshape(2, 3)
OF_CLASSES = DRAW.uniform(0.5, 2, VOCAB)


def ours(hidden, weight, bias, of_labels, **options):
    hidden = jnp.where(jnp.asarray(WEIGHTS)[..., None] == 0, jnp.nan, hidden)
    return linear_sigmoid_cross_entropy(
        hidden, weight, LABELS, bias=bias, label_weights=of_labels, positive_weight=OF_CLASSES,
        token_weights=WEIGHTS, **options,
    )  # fmt: skip


def true_and_factors(of_labels):
    """Which classes are true, [2, 3, vocab], their factors, and whose label each factor is."""
    true, factors = np.zeros((2, 3, VOCAB), bool), np.ones((2, 3, VOCAB))
    places = {}
    for at in np.ndindex(LABELS.shape):
        place = *at[:-1], LABELS[at]
        if 0 <= LABELS[at] < VOCAB and not true[place]:
            true[place] = True
            factors[place] = of_labels[at] * OF_CLASSES[LABELS[at]]
            places[at] = place
    return true, factors, places


def by_hand(hidden, weight, bias, of_labels):
    """The losses in NumPy, and what takes their cotangent to those of the arrays."""
    true, factors, places = true_and_factors(of_labels)
    logits = np.where(INSIDE, hidden @ weight.T + np.where(INSIDE, bias, 0), -np.inf)
    wrong = np.logaddexp(0, np.where(true, -logits, logits))
    losses = np.where(INSIDE, factors * wrong, 0).sum(-1) * WEIGHTS

    def backward(d_losses):
        scale = (np.broadcast_to(d_losses, WEIGHTS.shape) * WEIGHTS)[..., None]
        d_logits = scale * np.where(INSIDE, factors * (special.expit(logits) - true), 0)
        of_label = np.zeros(LABELS.shape)
        for at, place in places.items():
            of_label[at] = scale[place[:2]][0] * OF_CLASSES[place[2]] * wrong[place]
        rows = d_logits.reshape(6, VOCAB)
        d_hidden = (rows @ weight).reshape(hidden.shape)
        return d_hidden, rows.T @ hidden.reshape(6, FEATURES), rows.sum(0), of_label

    return losses, backward


def test_it_is_the_loss_of_whole_logits(x64):
    """Of one device and of four, a table in either layout, by tiles of which the last is moved."""
    mesh = jax.make_mesh((2, 2), ("data", "vocab"), axis_types=(AxisType.Auto,) * 2)
    sharding = VocabSharding(mesh, "vocab", "data")

    def mean(hidden, weight, *others):
        return ours(hidden, weight.T, *others, features_first=True, tiles=Tiles(vocab_tile=5))

    def each(*arrays):
        tiles = Tiles(vocab_tile=4)
        return ours(*arrays, sharding=sharding, tiles=tiles, reduction="none") * FACTORS

    true, factors, _ = true_and_factors(OF_LABELS)

    @jax.jit
    def program(hidden, weight, bias, of_labels):
        plain = reference.linear_sigmoid_cross_entropy(
            hidden, weight[INSIDE], jnp.asarray(true[..., INSIDE]),
            jnp.asarray(factors[..., INSIDE]), bias=bias[INSIDE],
        )  # fmt: skip
        return plain, [
            jax.value_and_grad(lambda *a, f=f: f(*a).sum(), (0, 1, 2, 3))(
                hidden, weight, bias, of_labels
            )
            for f in (mean, each)
        ]

    arrays = HIDDEN, WEIGHT, BIAS, OF_LABELS
    plain, found = program(*arrays)
    losses, backward = by_hand(*arrays)
    assert_near(losses, plain * WEIGHTS, 1e-12)
    assert_backward(by_hand, arrays, backward(FACTORS), [FACTORS])
    for got, share in zip(found, (1 / WEIGHTS.sum(), FACTORS), strict=True):
        assert_near(got, ((losses * share).sum(), backward(share)), 1e-12)


def test_a_bad_label_is_nan_where_it_is_found_out_late():
    @jax.jit
    @jax.grad
    def gradient(hidden, labels):
        return linear_sigmoid_cross_entropy(hidden, WEIGHT, labels)

    found = gradient(jnp.ones((2, FEATURES)), jnp.array([[1, 12], [-1, 3]]))
    assert np.isnan(found).all(1).tolist() == [True, False]


def test_no_whole_logits(strict_modes):
    tokens, vocab = 2048, 8192

    def loss(hidden, weight, labels):
        factors = np.ones(vocab), np.ones(labels.shape)
        return linear_sigmoid_cross_entropy(
            hidden, weight, labels, positive_weight=factors[0], label_weights=factors[1]
        )

    shapes = [((tokens, 8), jnp.bfloat16), ((vocab, 8), jnp.float32), ((tokens, 3), jnp.int16)]
    arrays = [jax.ShapeDtypeStruct(*each) for each in shapes]
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < tokens * vocab


@pytest.mark.usefixtures("users_checks")
def test_it_refuses():
    arrays = jnp.ones((2, FEATURES)), WEIGHT
    fine = [[1, 2], [3, -1]]
    for labels, options, message in (
        ([1, 2], {}, r"labels must be \[..., num_true\] with the first axes of hidden, \(2,\)"),
        ([[1], [12]], {}, r"labels must lie in \[0, vocab_size\) = \[0, 12\), got 12"),
        (fine, {"ignore_index": None}, "say ignore_index=-1 to leave such tokens out"),
        (fine, {"label_weights": [1.0, 2.0]}, "label_weights must have one value a true class"),
        (fine, {"label_weights": -np.ones((2, 2))}, r"label_weights must be at least 0, got -1\.0"),
        (fine, {"positive_weight": -2.0}, r"positive_weight must be at least 0, got -2\.0"),
        (fine, {"positive_weight": np.ones(3)}, r"positive_weight must be a number or \[vocab\]"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_sigmoid_cross_entropy(*arrays, labels, **options)
    with pytest.raises(TypeError, match="labels must be integer class ids"):
        linear_sigmoid_cross_entropy(*arrays, [[0.5], [1.0]])
    assert linear_sigmoid_cross_entropy(jnp.ones((0, FEATURES)), WEIGHT, np.zeros((0, 2), int)) == 0
    no_true = linear_sigmoid_cross_entropy(*arrays, np.zeros((2, 0), int))
    assert_near(no_true, np.logaddexp(0, np.ones(FEATURES) @ WEIGHT.T).sum(), 1e-5)
