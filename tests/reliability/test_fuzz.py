"""Losses, samplers and rows of any shape, dtype or size: the right numbers, or an error that names
an argument; see ``fuzzing.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from jaxnets.kernels import (
    LogUniform,
    SparseRows,
    Tiles,
    Uniform,
    Unigram,
    add_rows,
    compiling_for,
    draw_samples,
    gather_rows,
    in_batch_samples,
    in_batch_softmax_cross_entropy,
    linear_label_rank,
    linear_softmax_cross_entropy,
    linear_top_k,
    nce_loss,
    negative_sampling_loss,
    rows_from_dense,
    sampled_softmax_cross_entropy,
    to_dense,
)
from tests.fixed_samples import fixed_samples
from tests.inputs import on_device
from tests.reliability.fuzzing import (
    EXAMPLES,
    FLOATS,
    SEARCHING,
    array,
    fuzzed,
    holds,
    log_sum_exp,
    mixed,
    outcome,
    plain_full,
    projections,
    spoiled,
    tables,
)
from tests.sampled_losses import sampled_loss

pytestmark = pytest.mark.usefixtures("users_checks")

KEY = jax.random.key(0)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_linear_softmax_cross_entropy(platform):
    implementation = None if platform == "cpu" else "pallas"

    @fuzzed(spoiled(projections()), EXAMPLES if platform == "cpu" else EXAMPLES // 2)
    def run(arguments):
        def losses(**arguments):
            with compiling_for(platform, interpret=platform != "cpu"):
                return linear_softmax_cross_entropy(
                    **arguments,
                    reduction="none",
                    tiles=Tiles(vocab_tile=16),
                    implementation=implementation,
                )

        holds(losses, plain_full, arguments, 7)

    run()


@st.composite
def sampled_problems(draw):
    arguments = draw(projections())
    for name in ("label_smoothing", "soft_cap", "z_loss"):
        del arguments[name]
    batch, vocab_size = arguments["labels"].shape, arguments["weight"].shape[0]
    mix = draw(mixed(num_true=(None, 1, 3), per_token=(False, True), sampled=(1, 2, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 3)))
    if mix["num_true"] is not None:
        labels = rng.integers(0, vocab_size, (*batch, mix["num_true"]))
        arguments["labels"] = on_device(labels)
    count = -(-vocab_size // mix["sampled"])
    of_each = batch if mix["per_token"] and mix["num_true"] is None else ()
    ids = rng.integers(0, vocab_size, (*of_each, count))
    arguments["samples"] = fixed_samples(vocab_size, arguments["labels"], ids)
    return arguments


LOSSES = {
    "sampled": (sampled_softmax_cross_entropy, "softmax", {}),
    "nce": (nce_loss, "nce", {"remove_accidental_hits": False}),
    "negative": (
        negative_sampling_loss, "nce", {"remove_accidental_hits": False, "subtract_log_q": False}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_sampled_losses(name):
    loss, kind, options = LOSSES[name]

    def plain(hidden, weight, bias, labels, samples):
        return sampled_loss(kind, hidden, weight, labels, samples, bias, **options)[0]

    @fuzzed(spoiled(sampled_problems()))
    def run(arguments):
        holds(lambda **given: loss(**given, reduction="none"), plain, arguments, 7)

    run()


@st.composite
def item_batches(draw):
    mix = draw(mixed((9, 7), dtype=FLOATS, log_probability=(False, True)))
    batch, features = mix["sizes"]
    log_probability = on_device(-np.abs(array(draw, batch, seed=20)))
    return {
        "hidden": array(draw, batch, features, dtype=mix["dtype"]),
        "items": array(draw, batch, features, dtype=mix["dtype"], seed=10),
        "labels": on_device(np.random.default_rng(batch).integers(0, 5, batch)),
        "log_probability": log_probability if mix["log_probability"] else None,
    }


def plain_in_batch(hidden, items, labels, log_probability):
    scores = hidden @ items.T - (0 if log_probability is None else log_probability)
    hits = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    return log_sum_exp(np.where(hits, -np.inf, scores)) - np.diagonal(scores)


@fuzzed(spoiled(item_batches()))
def test_in_batch_softmax(arguments):
    @jax.jit
    def losses(**given):
        return in_batch_softmax_cross_entropy(**given, reduction="none")

    holds(losses, plain_in_batch, arguments, 7)


@fuzzed(spoiled(projections()), EXAMPLES // 2)
def test_linear_top_k(arguments):
    chosen = {name: arguments[name] for name in ("hidden", "weight", "bias")}

    def plain(hidden, weight, bias):
        return np.sort(hidden @ weight.T + (0 if bias is None else bias))[..., ::-1][..., :2]

    def best(**given):
        return linear_top_k(**given, k=2, tiles=Tiles(vocab_tile=16))[0]

    if chosen["weight"].shape[0] < 2:
        with pytest.raises((ValueError, TypeError)):
            best(**chosen)
    else:
        holds(best, plain, chosen, 7)


@fuzzed(spoiled(projections()), EXAMPLES // 2)
def test_linear_label_rank(arguments):
    """Every dtype has these logits exactly, and so their ties."""
    chosen = {name: arguments[name] for name in ("hidden", "weight", "bias", "labels")}

    def plain(hidden, weight, bias, labels):
        logits = hidden @ weight.T + (0 if bias is None else bias)
        label = np.take_along_axis(logits, labels[..., None], -1)
        return (logits > label).sum(-1), (logits == label).sum(-1) - 1

    holds(lambda **given: linear_label_rank(**given, tiles=Tiles(vocab_tile=16)), plain, chosen, 0)


@fuzzed(spoiled(tables()))
def test_rows(arguments):
    @jax.jit
    def doubled(tables, ids):
        row_ids, rows, local = gather_rows(tables, ids)
        return rows[local], add_rows(tables, SparseRows(row_ids, rows))

    def plain(tables, ids):
        ids = ids.astype(int)
        touched = np.isin(np.arange(len(tables)), ids)
        return tables[ids], np.where(touched.reshape(-1, *[1] * (tables.ndim - 1)), 2, 1) * tables

    if not jnp.issubdtype(arguments["tables"].dtype, jnp.floating):
        arguments["tables"] = on_device(arguments["tables"], np.float32)  # any dtype is a table's
    ids = arguments["ids"]
    assume(arguments["tables"].ndim and (np.asarray(ids) < arguments["tables"].shape[0]).all())
    holds(doubled, plain, arguments, 1)


@st.composite
def draws(draw):
    mix = draw(
        mixed((300,), shape=((), (3,), (2, 2)), sampler=(Uniform, LogUniform),
              unique=(False, True), per_token=(False, True))
    )  # fmt: skip
    (vocab_size,) = mix["sizes"]
    # More than there are is refused, and so are none, which compiles nothing.
    counts = st.integers(-1, 310) if SEARCHING else st.sampled_from([-1, 0, 7, 150, 301])
    return {
        "sampler": mix["sampler"](vocab_size),
        "num_sampled": draw(counts),
        "labels": on_device(
            np.random.default_rng(vocab_size).integers(0, vocab_size, mix["shape"])
        ),
        "unique": mix["unique"],
        "per_token": mix["per_token"],
    }


@fuzzed(spoiled(draws()))
def test_sample(arguments):
    samples, message = outcome(draw_samples, {**arguments, "key": KEY})
    if message is not None:
        assert any(name in message for name in arguments), message
        return
    shape, vocab_size = arguments["labels"].shape, arguments["sampler"].vocab_size
    count = arguments["num_sampled"]
    ids = np.asarray(samples.ids)
    assert ids.shape == ((*shape, count) if arguments["per_token"] else (count,))
    assert ids.dtype == np.int32
    assert ((ids >= 0) & (ids < vocab_size)).all()
    if arguments["unique"]:
        assert all(len(set(row)) == count for row in ids.reshape(-1, count).tolist())
    assert np.isfinite(samples.log_expected_count).all()
    assert samples.labels_log_expected_count.shape == shape


@st.composite
def labeled(draw):
    mix = draw(mixed(shape=((5,), (2, 3), (1,)), unique=(False, True)))
    shape = mix["shape"]
    return {
        "labels": on_device(np.random.default_rng(0).integers(0, 4, shape)),
        "log_probability": on_device(-np.abs(array(draw, *shape)) - np.float32(0.1)),
        "unique": mix["unique"],
    }


@fuzzed(spoiled(labeled()))
def test_in_batch(arguments):
    """Expected counts of as many draws as there are labels; a repeat counts never, if unique."""

    def counts(**given):
        samples = in_batch_samples(**given)
        return samples.ids, jnp.exp(-samples.log_expected_count)

    def plain(labels, log_probability, unique):
        ids, p = labels.reshape(-1), np.exp(log_probability.reshape(-1))
        expected = 1 - (1 - p) ** ids.size if unique else ids.size * p
        repeats = np.array([unique and ids[n] in ids[:n] for n in range(ids.size)], bool)
        return ids, np.where(repeats, 0, 1 / expected)

    if arguments["log_probability"].dtype == jnp.int32:  # rounded to 0: certain classes
        arguments["log_probability"] = arguments["log_probability"] - 1.0
    holds(counts, plain, arguments, 6)


@fuzzed(spoiled(tables()), EXAMPLES // 2)
def test_rows_from_dense(arguments):
    """All rows that are not 0 come back, where there is room for them."""
    gradient = arguments["tables"]
    there_and_back = jax.jit(
        lambda tables: to_dense(rows_from_dense(tables, len(tables)), len(tables))
    )
    got, message = outcome(there_and_back, {"tables": gradient})
    if message is None:
        np.testing.assert_array_equal(got, gradient)
    else:
        assert 0 in gradient.shape or gradient.ndim == 0
        assert "gradient must be" in message or "num_rows must be" in message


@fuzzed(st.lists(st.sampled_from([0.0, 1.0, 3.0, 0.5, -1.0, float("nan")]), max_size=9))
def test_unigram_of_any_counts(counts):
    """Its probabilities are the shares of the counts, or the counts are named."""
    got, message = outcome(Unigram.from_counts, {"counts": np.array(counts)})
    if message is not None:
        assert "counts" in message
        assert not counts or not sum(counts) or not all(count >= 0 for count in counts)
        return
    np.testing.assert_allclose(np.exp(got.log_p), np.array(counts) / sum(counts), rtol=1e-5)
    drawn = np.asarray(jax.jit(lambda sampler, key: sampler.draw(key, (200,)))(got, KEY))
    assert set(drawn.tolist()) <= {n for n, count in enumerate(counts) if count}
