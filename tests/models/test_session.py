"""The model of sessions: what follows what, rows against dense gradients, packed against padded."""

from functools import cache, partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnets import optim, rows
from jaxnets.kernels import (
    GRUParameters,
    Samples,
    SparseRows,
    bpr_max_loss,
    in_batch_samples,
)
from jaxnets.models import SessionGRU, next_items
from jaxnets.models.session import is_table
from jaxnets.sequences import pack, pack_arrays
from tests.every_number import every_number
from tests.inputs import INTEGER_TYPES, summed_rows
from tests.recurrence import steps
from tests.sampled_losses import token_by_token
from tests.tape import gradients, tracked
from tests.traced import traced

pytestmark = pytest.mark.usefixtures("cheap_parameters")

ITEMS = 50
SESSIONS = [np.array(ids, np.int32) for ids in ([3, 8, 1, 4], [9, 2], [7, 7, 3], [5])]


def padded(sessions, time=11, filling=0):
    """[sessions, time] ids, and how many are theirs; shorter loops compile for longer."""
    array = np.full((len(sessions), time), filling, np.int32)
    for row, session in zip(array, sessions, strict=True):
        row[: len(session)] = session
    return array, np.array([len(session) for session in sessions], np.int32)


@cache
def evaluated():
    """A model without dropout, whose state is wider than its embeddings."""
    model = SessionGRU(ITEMS, 16, hidden_features=12, tied=False, dropout=0.0, rngs=nnx.Rngs(0))
    model.eval()
    return model


@nnx.jit
def losses(model, items, lengths):
    """The exact loss after each item, [sessions, time]."""
    return model.loss(items, lengths, reduction="none")


@nnx.jit
def packed_losses(model, items, segment_ids):
    """The same of packed rows."""
    return model.loss(items, segment_ids=segment_ids, reduction="none")


@nnx.jit
def hidden_of(model, items, lengths):
    return model.hidden(items, lengths)


@partial(nnx.jit, static_argnames="exclude_seen")
def best_of(model, items, labels, lengths, exclude_seen):
    """Seven recommendations, and the rank of the labels."""
    options = {"lengths": lengths, "exclude_seen": exclude_seen}
    return model.recommend(items, 7, **options), model.label_rank(items, labels, **options)


def test_the_next_item_by_every_kind_of_padding():
    items, lengths = padded(SESSIONS, 4)
    wanted = [[8, 1, 4, -1], [2, -1, -1, -1], [7, 3, -1, -1], [-1, -1, -1, -1]]
    assert next_items(items, lengths).tolist() == wanted
    there = np.arange(4) < lengths[:, None]
    assert next_items(items, mask=there).tolist() == wanted
    assert next_items(items, segment_ids=there.astype(int)).tolist() == wanted
    holes = np.array([[5, 0, 6, 7], [0, 5, 6, 0], [5, 6, 5, 7], [0, 0, 0, 0]])
    marks = [[1, 0, 1, 2], [0, 3, 3, 0], [1, 1, 2, 2], [0, 0, 0, 1]]
    wanted = [[6, -1, -1, -1], [-1, 6, -1, -1], [6, -1, 7, -1], [-1, -1, -1, -1]]
    assert next_items(holes, segment_ids=marks).tolist() == wanted
    # An id that is none is no "nothing follows": a loss is to be NaN.
    items[0, 1] = -1
    assert next_items(items, lengths)[0].tolist() == [2**31 - 1, 1, 4, -1]


def test_packed_sessions_are_padded_ones():
    model, (items, lengths) = evaluated(), padded(SESSIONS, filling=99)
    wanted = np.asarray(losses(model, items, lengths))
    packing = pack(lengths, 11)
    packed = pack_arrays(SESSIONS, packing, 11)
    found = packed_losses(model, packed.sequences, packed.segment_ids)
    assert (wanted > 0).sum(1).tolist() == [3, 1, 2, 0]
    for row, sessions in zip(found, packing, strict=True):
        of_row = np.concatenate([wanted[i, : lengths[i]] for i in sessions])
        # Sums of 50 terms near 1, in float32.
        np.testing.assert_allclose(row[: len(of_row)], of_row, rtol=1e-5)


def test_recommendations_are_those_of_all_scores():
    model, (items, lengths) = evaluated(), padded(SESSIONS, filling=-7)
    hidden = np.asarray(hidden_of(model, items, lengths))
    assert not hidden[np.arange(11) >= lengths[:, None]].any()
    last = hidden[np.arange(4), lengths - 1]
    scores = last @ np.asarray(model.projection.weight[...]).T
    seen = scores.copy()
    for row, session in zip(seen, SESSIONS, strict=True):
        row[session] = -np.inf
    labels = np.array([4, 11, 12, 13])
    for exclude_seen, of_all in ((True, seen), (False, scores)):
        found, rank = best_of(model, items, labels, lengths, exclude_seen)
        order = np.argsort(-of_all, axis=1, kind="stable")[:, :7]
        np.testing.assert_array_equal(found.ids, order)
        np.testing.assert_allclose(found.logits, np.take_along_axis(of_all, order, 1), rtol=1e-5)
        own = np.take_along_axis(scores, labels[:, None], 1)
        np.testing.assert_array_equal(rank.above, (of_all > own).sum(1))


def ranking_loss(model, batch):
    """BPR-max over the batch's own items."""
    labels = next_items(*batch)
    samples = in_batch_samples(labels, jnp.zeros(labels.shape), mask=labels >= 0)
    return model.loss(*batch, samples=samples, function=bpr_max_loss, score_regularization=0.1)


def ranking_by_hand(model, items, lengths):
    """The value of ``ranking_loss``, and the gradients by the path of their parameter."""
    parameters = {
        path: np.asarray(leaf[...], float)
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    paths = [("gru", "layers", 0, 0, name) for name in GRUParameters._fields]
    last, there = parameters["last", "kernel"], np.arange(items.shape[1]) < lengths[:, None]
    ids = np.where(there, items, 0)
    arguments = tracked((
        parameters["embedding", "embedding"][ids], np.zeros((len(items), len(last))),
        GRUParameters(*(parameters[path] for path in paths)),
    ))  # fmt: skip
    outputs, _ = steps(*arguments, lengths=lengths)
    labels = np.where(there[:, 1:], items[:, 1:], -1)
    labels = np.pad(labels, ((0, 0), (0, 1)), constant_values=-1).reshape(-1, 1)
    zeros = np.zeros(len(labels))
    counts = np.full(len(labels), np.inf)
    counts[np.unique(labels, return_index=True)[1]] = 0  # of each class once
    counts[labels[:, 0] < 0] = np.inf
    samples = Samples(labels[:, 0], counts, zeros, len(labels))
    loss, (of_hidden, of_weight, of_bias, _), _ = token_by_token(
        "bpr-max", outputs.array.reshape(-1, len(last)) @ last, parameters["projection", "weight"],
        labels, samples, parameters["projection", "bias"], zeros + 1, ignored=-1,
        score_regularization=0.1,
    )  # fmt: skip
    of_states = (of_hidden @ last.T).reshape(outputs.array.shape)
    of_vectors, _, of_gru = gradients(outputs, of_states, arguments)
    of_embedding = np.zeros((ITEMS, of_vectors.shape[-1]))
    np.add.at(of_embedding, ids, of_vectors)
    return loss, {
        ("embedding", "embedding"): of_embedding,
        ("last", "kernel"): outputs.array.reshape(-1, len(last)).T @ of_hidden,
        ("projection", "weight"): of_weight,
        ("projection", "bias"): of_bias,
    } | dict(zip(paths, of_gru, strict=True))


def test_it_learns_what_follows_by_the_gradients_that_dense_ones_are():
    """Of each item one other follows, by a permutation, and the session before says no more."""
    follows = np.random.default_rng(0).permutation(ITEMS)

    def batch_at(step, sessions=32, time=10):
        rng = np.random.default_rng(step)
        ids = [rng.integers(0, ITEMS - 1, sessions)]
        for _ in range(time):
            ids.append(follows[ids[-1]])
        items, lengths = np.stack(ids, 1).astype(np.int32), rng.integers(2, time + 2, sessions)
        items[np.arange(time + 1) >= lengths[:, None]] = ITEMS  # none, and it leaves no trace
        return items, lengths

    @nnx.jit(donate_argnums=(0, 1))
    def step(model, optimizer, batch):
        loss, gradients = rows.value_and_grad(ranking_loss)(model, batch)
        optimizer.update(model, gradients)
        return loss, gradients

    model = SessionGRU(ITEMS, 16, hidden_features=12, tied=False, dropout=0.0, rngs=nnx.Rngs(0))
    by_rows = optim.partition(optim.lazy_adam(0.03), optax.flatten(optax.adam(0.03)), is_table)
    optimizer = nnx.Optimizer(model, by_rows, wrt=nnx.Param)
    wanted_loss, wanted = ranking_by_hand(model, *batch_at(0))
    loss, found = step(model, optimizer, batch_at(0))
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    assert len(nnx.to_flat_state(found)) == len(wanted)
    for path, gradient in nnx.to_flat_state(found):
        gradient = gradient.get_value()
        assert isinstance(gradient, SparseRows) == is_table(tuple(map(str, path)))
        if isinstance(gradient, SparseRows):
            gradient = summed_rows(gradient, ITEMS)
        # Means over a hundred labels of numbers near 1, in float32.
        np.testing.assert_allclose(gradient, wanted[path], atol=2e-6)
    for number in range(1, 60):
        step(model, optimizer, batch_at(number))
    model.eval()
    first = []
    for number in range(10**6, 10**6 + 8):
        items, lengths = batch_at(number, sessions=4)
        sessions = np.pad(items[:, :-1], ((0, 0), (0, 1)))
        labels = items[np.arange(4), lengths - 1]
        _, rank = best_of(model, sessions, labels, lengths - 1, exclude_seen=False)
        first += [np.add(rank.above, rank.ties) == 0]
    # By chance one in fifty.
    assert np.mean(first) > 0.9


def test_ids_and_lengths_of_any_integers():
    model, (items, lengths) = evaluated(), padded(SESSIONS)

    def computed(dtype):
        cast = items.astype(dtype), lengths.astype(dtype)
        return traced(lambda model: model.loss(*cast, reduction="none"), model)

    wanted = computed("int32")
    for dtype in INTEGER_TYPES:
        assert computed(dtype) == wanted


def test_what_is_out_of_range_is_an_error_or_nan(users_checks):
    model, (items, lengths) = evaluated(), padded(SESSIONS)
    for wrong in (ITEMS, -1):
        changed = items.copy()
        changed[0, 3] = wrong
        with pytest.raises(ValueError, match=rf"items must lie in .* \[0, {ITEMS}\), got {wrong}"):
            model.hidden(changed, lengths)
        # The last item of a session, whose state no loss has, is the label of the one before.
        nan = np.isnan(losses(model, changed, lengths))
        assert nan[0].tolist() == [False, False, True] + [False] * 8
        assert not nan[1:].any()
    for wrong in (12, -1):
        with pytest.raises(ValueError, match=rf"lengths must lie in \[0, time\].*got {wrong}"):
            model.loss(items, [4, wrong, 3, 1])
        nan = np.isnan(losses(model, items, np.array([4, wrong, 3, 1])))
        assert nan.all(1).tolist() == [False, True, False, False]
    assert not losses(model, items, np.zeros(4, np.int32)).any()
    sessions = np.array([[3] * 11, [ITEMS, 1] * 5 + [1]] * 2, np.int32)
    found, _ = best_of(model, sessions, np.array([4, 11, 12, 13]), np.full(4, 2, np.int32), True)
    assert np.isnan(found.logits).any(1).tolist() == [False, True] * 2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.hidden([3, 8]), ValueError, r"items must be \[batch, time\] ids.*\(2,\)"),
        (lambda m: m.hidden([[3.0]]), TypeError, "items must be integers, got dtype float64"),
        (lambda m: m.hidden([[3]], [1], mask=[[True]]), ValueError, "lengths must be left out"),
        (lambda m: m.hidden([[3]], [1, 1]), ValueError, r"lengths must be \[batch\]"),
        (lambda m: m.recommend([[3]], 0), ValueError, r"k must lie in \[1, num_classes\]"),
        (lambda m: m.label_rank([[3]], [ITEMS]), ValueError, "labels must lie in"),
        (lambda m: SessionGRU(0, rngs=nnx.Rngs(0)), ValueError, "items must be at least 1"),
        (lambda m: SessionGRU(9, 2.0, rngs=nnx.Rngs(0)), TypeError, "features must be an integer"),
        (
            lambda m: SessionGRU(9, 2, dropout=1.0, rngs=nnx.Rngs(0)),
            ValueError,
            r"dropout must lie in \[0, 1\)",
        ),
    ],
)
def test_bad_input(call, error, words, users_checks):
    with pytest.raises(error, match=words):
        call(evaluated())


def test_no_sessions_no_steps_and_strict_modes(strict_modes):
    """Every number on the way is looked at."""
    model, (items, lengths) = evaluated(), padded(SESSIONS, filling=-3)
    loss, found = every_number(
        lambda model: (
            model.loss(items, lengths), model.recommend(items, 3, lengths=[4, 0, 0, 1])
        ), model
    )  # fmt: skip
    assert np.isfinite(loss)
    assert found.ids.shape == (4, 3)
    none = nnx.eval_shape(lambda model: model.recommend(np.zeros((0, 4), int), 3), model)
    assert none.ids.shape == (0, 3)
    assert nnx.jit(lambda model: model.loss(np.zeros((2, 0), int)))(model) == 0
