"""Metrics of rankings over batches, against a loop over rows in NumPy."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnets.kernels import LabelRank, TopK, linear_label_rank, linear_top_k
from jaxnets.models.metrics import RankingMetrics
from tests.inputs import INTEGER_TYPES

LARGEST, ITEMS, KS = 6, 97, (1, 3, 6)
BATCHES, ROWS = 3, (2, 4)


def batches(seed=0):
    """Ranks with ties over the border of k, recommendations of which some are none, weights."""
    draw = np.random.default_rng(seed)
    above = draw.integers(0, 9, (BATCHES, *ROWS)).astype(np.int32)
    ties = (draw.integers(0, 5, above.shape) * draw.integers(0, 2, above.shape)).astype(np.int32)
    ids = np.argsort(draw.normal(size=(*above.shape, ITEMS)))[..., : LARGEST + 1].astype(np.int32)
    ids = ids % 60  # some twice in a row, and some never
    logits = np.where(draw.random(ids.shape) < 0.2, -np.inf, 1).astype(np.float32)
    weights = draw.choice([0, 0.5, 1, 2], above.shape).astype(np.float32)
    return LabelRank(above, ties), TopK(logits, ids), weights


def plain(rank, top, weights):
    found = {}
    rows = [a.reshape(-1, *a.shape[3:]) for a in (*rank, *top, weights)]
    total = weights.sum(dtype=np.float64)
    for k in KS:
        sums, seen = np.zeros(3), set()
        for above, ties, logits, ids, weight in zip(*rows, strict=True):
            for place in range(above, above + ties + 1):
                if place < k:
                    gains = 1, 1 / np.log2(place + 2), 1 / (place + 1)
                    sums += weight * np.array(gains) / (ties + 1)
            seen |= {
                i for i, logit in zip(ids[:k], logits[:k], strict=True) if weight and logit > 0
            }
        for name, value in zip(("recall", "ndcg", "mrr"), sums / total, strict=True):
            found[f"{name}@{k}"] = value
        found[f"coverage@{k}"] = len(seen) / ITEMS
    return found


def near(found, wanted):
    """In float32, of some 24 rows."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def run(rank, top, weights, *, scanned=False):
    metrics = RankingMetrics.create(LARGEST, items=ITEMS)
    if scanned:

        def step(metrics, batch):
            rank, top, weights = batch
            return metrics.update(rank, top=top, token_weights=weights), None

        metrics, _ = jax.jit(lambda *a: jax.lax.scan(step, metrics, a))(rank, top, weights)
        return jax.jit(lambda metrics: metrics.compute(KS))(metrics)
    leaves, structure = jax.tree.flatten((rank, top, weights))
    for batch in zip(*leaves, strict=True):
        rank, top, weights = jax.tree.unflatten(structure, batch)
        metrics = metrics.update(rank, top=top, token_weights=weights)
    return metrics.compute(KS)


@pytest.mark.parametrize("scanned", [False, True])
def test_against_a_loop_over_rows(scanned):
    rank, top, weights = batches()
    wanted = plain(rank, top, weights)
    near(run(rank, top, weights, scanned=scanned), wanted)
    assert len(set(wanted.values())) == len(wanted) - 2  # of k = 1 three are the recall


def test_from_scores():
    """Of ranks and recommendations of the kernels: what sorting all scores gives."""
    draw = np.random.default_rng(0)
    users, items = draw.normal(size=(40, 5)), draw.normal(size=(30, 5))
    users, items = users.astype(np.float32), items.astype(np.float32)
    true = draw.integers(0, 30, 40)
    seen = (true[:, None] + draw.integers(1, 30, (40, 3))) % 30
    scores = users.astype(np.float64) @ items.T
    np.put_along_axis(scores, seen, -np.inf, 1)
    order = np.argsort(-scores, axis=1)
    place = np.argmax(order == true[:, None], axis=1)

    metrics = RankingMetrics.create(10, items=30)
    for part in (slice(0, 15), slice(15, 40)):
        options = {"exclude": seen[part]}
        rank = linear_label_rank(users[part], items, true[part], **options)
        metrics = metrics.update(rank, top=linear_top_k(users[part], items, 10, **options))
    found = metrics.compute([1, 10])
    for k in (1, 10):
        hit = place < k
        np.testing.assert_allclose(found[f"recall@{k}"], hit.mean(), rtol=1e-6)
        np.testing.assert_allclose(found[f"ndcg@{k}"], (hit / np.log2(place + 2)).mean(), rtol=1e-5)
        np.testing.assert_allclose(found[f"mrr@{k}"], (hit / (place + 1)).mean(), rtol=1e-5)
        reached = len(np.unique(order[:, :k])) / 30
        np.testing.assert_allclose(found[f"coverage@{k}"], reached, rtol=1e-6)


@pytest.mark.parametrize("scanned", [False, True])
def test_a_row_of_weight_0_leaves_no_trace(scanned):
    rank, top, weights = batches()
    wanted = plain(rank, top, weights)
    left_out = weights == 0
    spoiled = LabelRank(*(np.where(left_out, -1, a) for a in rank))
    top = TopK(np.where(left_out[..., None], np.nan, top.logits), top.ids)
    near(run(spoiled, top, weights, scanned=scanned), wanted)


def test_what_has_no_rank_is_no_metric():
    rank, _, weights = batches()
    rank, weights = LabelRank(*(a[0] for a in rank)), weights[0]
    metrics = RankingMetrics.create(LARGEST).update(rank, token_weights=weights)
    spoiled = LabelRank(*(np.where(weights == 2, -1, a) for a in rank))
    assert np.isfinite([*metrics.compute(KS).values()]).all()
    found = metrics.update(spoiled, token_weights=weights).compute(KS)
    assert np.isnan([*found.values()]).all()
    assert list(found) == [f"{name}@{k}" for k in KS for name in ("recall", "ndcg", "mrr")]


def test_no_rows():
    nothing = RankingMetrics.create(3)
    assert np.isnan([*nothing.compute([2]).values()]).all()
    empty = nothing.update(LabelRank(np.zeros((0, 5), np.int32), np.zeros((0, 5), np.int32)))
    jax.tree.map(np.testing.assert_array_equal, empty, nothing)


def test_integers_of_any_type():
    rank, top, _ = jax.tree.map(lambda a: a[0], batches())

    def found(dtype):
        metrics = RankingMetrics.create(LARGEST, items=ITEMS)
        integers = LabelRank(*(a.astype(dtype) for a in rank))
        return metrics.update(integers, top=top._replace(ids=top.ids.astype(dtype)))

    for dtype in INTEGER_TYPES:
        jax.tree.map(np.testing.assert_array_equal, found(dtype), found("int32"))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_split_over_devices(kind):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    arrays = batches()
    rows = NamedSharding(mesh, PartitionSpec(None, None, "model"))
    near(run(*jax.device_put(arrays, rows)), plain(*arrays))


def test_strict_modes(strict_modes):
    run(*batches())


def test_bad_input(users_checks):
    rank, top, weights = jax.tree.map(lambda a: a[0], batches())
    metrics = RankingMetrics.create(LARGEST, items=ITEMS)
    with pytest.raises(ValueError, match="largest_k must be at least 1, got 0"):
        RankingMetrics.create(0)
    with pytest.raises(TypeError, match=r"items must be an integer, got 3\.5"):
        RankingMetrics.create(1, items=3.5)
    with pytest.raises(ValueError, match=r"k must lie in \[1, largest_k\] = \[1, 6\], got 7"):
        metrics.compute([1, 7])
    with pytest.raises(ValueError, match="top must be given if, and only if"):
        metrics.update(rank)
    with pytest.raises(ValueError, match="top must be given if, and only if"):
        RankingMetrics.create(LARGEST).update(rank, top=top)
    with pytest.raises(ValueError, match=r"rank\.above and rank.ties must be alike"):
        metrics.update(LabelRank(rank.above, rank.ties[0]), top=top)
    with pytest.raises(TypeError, match=r"rank\.above must be integers, got dtype float32"):
        metrics.update(LabelRank(rank.above.astype(np.float32), rank.ties), top=top)
    with pytest.raises(ValueError, match=r"k of at least largest_k = 6, got ids \(2, 4, 5\)"):
        metrics.update(rank, top=TopK(*(a[..., :5] for a in top)))
    with pytest.raises(ValueError, match=r"token_weights must have one value a token"):
        metrics.update(rank, top=top, token_weights=weights[0])
    wrong = TopK(np.zeros_like(top.logits), np.full_like(top.ids, ITEMS))
    with pytest.raises(ValueError, match=r"top.ids must lie in \[0, items\) = \[0, 97\), got 97"):
        metrics.update(rank, top=wrong)
    found = jax.jit(lambda top: metrics.update(rank, top=top))(wrong)
    assert np.isnan(found.found_at).all()
    assert (found.first_place == LARGEST).all()
