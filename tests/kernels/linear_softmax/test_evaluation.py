"""Evaluation over all classes: ranks of labels, and what is excluded, against whole logits."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import LabelRank, Tiles, TopK, linear_label_rank, linear_top_k
from tests.inputs import INTEGER_TYPES, on_device

TOKENS, FEATURES, VOCAB = (2, 5), 4, 23
TILES = Tiles(vocab_tile=7)  # three, and two classes more
OUT = -np.inf


def problem(tokens=TOKENS, vocab_size=VOCAB, features=FEATURES):
    """Small integers, so that every dtype has the logits exactly, and many of them are equal."""
    draw = np.random.default_rng(0)
    hidden = draw.integers(-2, 3, (*tokens, features)).astype(np.float32)
    weight = draw.integers(-2, 3, (vocab_size, features)).astype(np.float32)
    bias = draw.integers(-2, 3, vocab_size).astype(np.float32)
    bias[[0, 1, 2, 3, 4, 5, 6, 20]] = OUT  # the first tile of classes, and one more
    labels = draw.integers(7, 20, tokens)
    exclude = draw.integers(-1, vocab_size, (*tokens, 6))
    exclude[..., 5] = exclude[..., 0]  # twice
    exclude[0, ..., 1] = labels[0]  # of some, the label itself
    # Filled up, so that one program takes any classes to exclude, and all of them.
    exclude = np.pad(exclude, [(0, 0)] * len(tokens) + [(0, vocab_size - 6)], constant_values=-1)
    return hidden, weight, bias, labels, exclude


def plain_logits(hidden, weight, bias, exclude):
    """In float64, -inf where a class is out, and which are in."""
    logits = hidden.astype(np.float64) @ weight.T.astype(np.float64) + bias
    inside = np.broadcast_to(~np.isneginf(bias), logits.shape).copy()
    if exclude is not None:
        inside &= ~(exclude[..., None] == np.arange(len(weight))).any(-2)
    return np.where(inside, logits, OUT), logits, inside


def plain_rank(hidden, weight, bias, labels, exclude=None):
    _, logits, inside = plain_logits(hidden, weight, bias, exclude)
    others = inside & (labels[..., None] != np.arange(len(weight)))
    label = np.take_along_axis(logits, labels[..., None], -1)
    return LabelRank((others & (logits > label)).sum(-1), (others & (logits == label)).sum(-1))


def equal(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


class Evaluated(NamedTuple):
    rank: LabelRank
    rank_of_all: LabelRank  # nothing excluded
    best: TopK


@jax.jit
def evaluated(hidden, weight, bias, labels, exclude):
    """One program for any arrays of the shapes of ``problem``; label -100 is ignored."""
    options = {"bias": bias, "tiles": TILES}
    return Evaluated(
        linear_label_rank(hidden, weight, labels, exclude=exclude, ignore_index=-100, **options),
        linear_label_rank(hidden, weight, labels, ignore_index=-100, **options),
        linear_top_k(hidden, weight, 20, exclude=exclude, **options),
    )


def in_numpy(results):
    return jax.tree.map(np.asarray, results)


@pytest.mark.parametrize(
    ("dtype", "features_first"),
    [
        ("float32", False),
        pytest.param("bfloat16", True, marks=pytest.mark.smoke),
        ("float16", False),
        ("float64", True),
    ],
)
def test_ranks(x64, dtype, features_first):
    hidden, weight, bias, labels, exclude = problem()
    table = weight.T if features_first else weight
    arrays = [on_device(a, dtype) for a in (hidden, table, bias)]

    # Nothing excluded: once in each layout.
    excluded = (exclude, None) if dtype in ("float32", "bfloat16") else (exclude,)

    @jax.jit
    def ranks(hidden, weight, bias):
        return [
            linear_label_rank(
                hidden, weight, labels, bias=bias, exclude=out, tiles=TILES,
                features_first=features_first,
            )
            for out in excluded
        ]  # fmt: skip

    found = ranks(*arrays)
    assert all(a.dtype == jnp.int32 for a in jax.tree.leaves(found))
    wanted = [plain_rank(hidden, weight, bias, labels, out) for out in excluded]
    equal(found, wanted)
    assert all(rank.ties.any() for rank in wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ranks_of_any_numbers(x64, dtype):
    """More tokens than are computed at a time; classes of the same row are ties in any dtype."""
    draw = np.random.default_rng(1)
    hidden, weight = draw.normal(size=(600, 37)), draw.normal(size=(150, 37))
    hidden, weight = hidden.astype(dtype), weight.astype(dtype)
    rows = draw.permutation(300) % 150
    labels = draw.integers(0, 300, 600)
    found = in_numpy(linear_label_rank(hidden, weight[rows], labels, tiles=Tiles(vocab_tile=64)))
    logits = hidden.astype(np.float64) @ weight.astype(np.float64).T
    of_label = logits[np.arange(600), rows[labels]]
    above = 2 * (logits > of_label[:, None]).sum(1)
    assert (found.ties == 1).all()
    assert (np.abs(found.above - above) <= (2 if dtype == "float32" else 0)).all()


@pytest.mark.parametrize(
    ("tile", "k"), [(1, None), (100, None), (1, 3), (5, VOCAB), (23, 3)], ids=str
)
def test_the_tile_changes_nothing(tile, k):
    """Neither of the labels' ranks, k None, nor of the best classes."""
    hidden, weight, bias, labels, exclude = problem()
    options = {"bias": bias, "exclude": exclude, "tiles": Tiles(vocab_tile=tile)}
    if k is None:
        found = linear_label_rank(hidden, weight, labels, **options)
        equal(found, plain_rank(hidden, weight, bias, labels, exclude))
        return
    whole, _, _ = plain_logits(hidden, weight, bias, exclude)
    logits, ids = linear_top_k(hidden, weight, k, **options)
    wanted = np.argsort(-whole, -1, stable=True)[..., :k]  # classes that are out come last
    equal((logits, ids), (np.take_along_axis(whole, wanted, -1), wanted))


@pytest.mark.parametrize("features_first", [False, True])
def test_top_k_has_nothing_excluded(features_first):
    """Not even where it is NaN; and with no more left than k, what is left, and -inf."""
    hidden, weight, bias, _, exclude = problem()
    exclude[..., 4] = 9
    weight[9] = np.nan
    if features_first:
        best = linear_top_k(
            hidden, weight.T, 20, bias=bias, exclude=exclude, features_first=True, tiles=TILES
        )
    else:
        best = evaluated(hidden, weight, bias, np.zeros(TOKENS, int), exclude).best
    logits, ids = in_numpy(best)
    found = (ids[..., None, :] == exclude[..., None]).any(-2)
    assert np.isneginf(logits)[found].all()
    assert np.isfinite(logits)[..., :9].all()
    assert all(len(set(row)) == 20 for row in ids.reshape(-1, 20).tolist())
    if features_first:
        return
    everything = np.broadcast_to(np.arange(VOCAB), (*TOKENS, VOCAB))
    no_bias, labels = np.zeros(VOCAB, np.float32), np.zeros(TOKENS, int)
    logits, ids = in_numpy(evaluated(hidden, weight, no_bias, labels, everything).best)
    assert np.isneginf(logits).all()
    assert ids[1, 1].tolist() == list(range(20))


def test_what_has_no_rank():
    """A NaN of a class that is in; one that is out, or of another token, leaves no trace."""
    hidden, weight, bias, labels, exclude = problem()
    wanted = plain_rank(hidden, weight, bias, labels, exclude)
    exclude[..., 4] = 21
    hidden[0, 1], labels[0, 1] = np.nan, -100  # left out
    hidden[1, 2] = np.nan
    nan = weight.copy()
    nan[[3, 21]] = np.nan  # out by the bias, and by exclusion

    found = evaluated(hidden, nan, bias, np.where(labels == 21, 8, labels), exclude)
    wanted = plain_rank(np.nan_to_num(hidden), weight, bias, np.maximum(labels, 0), exclude)
    for got, count in zip(found.rank, wanted, strict=True):
        count[0, 1] = count[1, 2] = -1
        np.testing.assert_array_equal(got, count)
    assert all((np.asarray(a) == -1).all() for a in found.rank_of_all)


def test_a_label_that_is_out_is_ranked():
    """By its own logit if it is excluded; of bias -inf, below all that are in."""
    hidden, weight, bias, _, exclude = problem()
    labels = np.full(TOKENS, 2)  # of bias -inf
    found = in_numpy(evaluated(hidden, weight, bias, labels, exclude).rank)
    assert (found.above == plain_logits(hidden, weight, bias, exclude)[2].sum(-1)).all()
    assert not found.ties.any()


def test_infinite_logits():
    weight = np.array([[1.0], [2.0], [-1.0], [3.0], [-2.0]])
    ranks = [
        linear_label_rank(np.float32([[3e38]]), 9e9 * weight, [label], tiles=Tiles(vocab_tile=2))
        for label in range(5)
    ]
    assert [(int(r.above[0]), int(r.ties[0])) for r in ranks] == [
        (0, 2),
        (0, 2),
        (3, 1),
        (0, 2),
        (3, 1),
    ]


def test_integers_of_any_type():
    hidden, weight, bias, labels, exclude = problem()
    exclude = np.abs(exclude)
    wanted = plain_rank(hidden, weight, bias, labels, exclude)
    best = linear_top_k(hidden, weight, 3, bias=bias, exclude=exclude)
    for dtype in INTEGER_TYPES:
        out = exclude.astype(dtype)
        equal(
            linear_label_rank(hidden, weight, labels.astype(dtype), bias=bias, exclude=out), wanted
        )
        equal(linear_top_k(hidden, weight, 3, bias=bias, exclude=out), best)
    as_lists = labels.tolist(), exclude.tolist()
    equal(linear_label_rank(hidden, weight, as_lists[0], bias=bias, exclude=as_lists[1]), wanted)


def test_no_tokens_and_nothing_excluded():
    hidden, weight, bias, labels, _ = problem()
    none = np.zeros((0, 5), int)
    found = linear_label_rank(hidden[:0], weight, none, exclude=np.zeros((0, 5, 3), int))
    assert [a.shape for a in found] == [(0, 5), (0, 5)]
    assert linear_top_k(hidden[:0], weight, 2, exclude=none[..., None]).ids.shape == (0, 5, 2)
    nothing = np.zeros((*TOKENS, 0), int)
    equal(
        linear_label_rank(hidden, weight, labels, bias=bias, exclude=nothing),
        plain_rank(hidden, weight, bias, labels),
    )
    best = np.argsort(-hidden @ weight.T, -1, stable=True)[..., :2]
    equal(linear_top_k(hidden, weight, 2, exclude=nothing).ids, best)
    one = linear_label_rank(hidden[0, 0], weight, labels[0, 0], exclude=[3, -1])
    equal(one, plain_rank(hidden[0, 0], weight, np.zeros(VOCAB), labels[0, 0], np.array([3, -1])))


def test_bad_input(users_checks):
    hidden, weight, _, labels, exclude = problem()
    for function in (
        lambda **options: linear_label_rank(hidden, weight, labels, **options),
        lambda **options: linear_top_k(hidden, weight, 3, **options),
    ):
        with pytest.raises(TypeError, match="exclude must be integer class ids, got dtype float"):
            function(exclude=exclude.astype(float))
        with pytest.raises(
            ValueError, match=r"first axes of hidden, \(2, 5\), got shape \(2, 23\)"
        ):
            function(exclude=exclude[:, 0])
        for wrong in (VOCAB, -2, 2**40):
            with pytest.raises(
                ValueError, match=r"exclude must lie in \[-1, vocab_size\) = \[-1, 23\), got"
            ):
                function(exclude=np.full((*TOKENS, 1), wrong))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, vocab_size\).*got 23"):
        linear_label_rank(hidden, weight, np.full(TOKENS, VOCAB))


def test_what_is_found_out_of_range_under_jit():
    hidden, weight, _, labels, exclude = problem()
    exclude[0, 1, 2], exclude[1, 2, 0], labels[0, 3] = VOCAB, -2, -1

    found = in_numpy(evaluated(hidden, weight, np.zeros(VOCAB, np.float32), labels, exclude))
    for count in found.rank:
        assert np.argwhere(count == -1).tolist() == [[0, 1], [0, 3], [1, 2]]
    assert np.argwhere(np.isnan(found.best.logits).any(-1)).tolist() == [[0, 1], [1, 2]]


def test_beside_a_loss_and_under_vmap():
    hidden, weight, bias, labels, exclude = problem()

    def loss(hidden, weight, labels, exclude):
        found = (
            linear_label_rank(hidden, weight, labels, bias=bias, exclude=exclude, tiles=TILES),
            linear_top_k(hidden, weight, 3, bias=bias, exclude=exclude, tiles=TILES).ids,
        )
        return (hidden @ weight.T).mean(), found

    derived = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, found), _ = jax.jit(jax.vmap(derived, (0, None, 0, 0)))(hidden, weight, labels, exclude)
    equal(found[0], plain_rank(hidden, weight, bias, labels, exclude))
    whole, _, _ = plain_logits(hidden, weight, bias, exclude)
    equal(found[1], np.argsort(-whole, -1, stable=True)[..., :3])


def test_strict_modes(strict_modes):
    """Ranks and types show while tracing, of few bits."""
    hidden, weight, bias, labels, exclude = problem()
    labels[0, 0] = -100
    few_bits = jax.ShapeDtypeStruct(hidden.shape, jnp.bfloat16)
    jax.eval_shape(evaluated, few_bits, weight, bias, labels, exclude)
    found = evaluated(hidden, weight, bias, labels, exclude)
    assert np.argwhere(np.asarray(found.rank.above) == -1).tolist() == [[0, 0]]
    assert found.best.ids.shape == (2, 5, 20)


def test_memory_is_a_few_tiles():
    """Of 1,024 tokens and 65,536 classes; whole logits have 268 MB."""
    tokens, vocab_size, tile = 1024, 65_536, 1024
    shapes = (
        jax.ShapeDtypeStruct((tokens, 16), jnp.float32),
        jax.ShapeDtypeStruct((vocab_size, 16), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens, 100), jnp.int32),
    )

    def rank(hidden, weight, labels, exclude):
        return linear_label_rank(
            hidden, weight, labels, exclude=exclude, tiles=Tiles(vocab_tile=tile)
        )

    def best(hidden, weight, labels, exclude):
        return linear_top_k(hidden, weight, 100, exclude=exclude, tiles=Tiles(vocab_tile=tile))

    for function in (rank, best):
        compiled = jax.jit(function).lower(*shapes).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 8 * 512 * tile * 4
        assert not re.search(r"\[(1024|512),65536\]", compiled.as_text())
