"""A recommender of sessions: what a step costs by the number of items, and what each loss reaches.

Steps: GRU4Rec of generated sessions whose favorites drift, trained by rows and by dense gradients.
Quality: MovieLens 100K, each user's last event among all items that the user has not had.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import sessions
from benchmarks.bars import bar, ratio
from benchmarks.harness import Case, Suite, compiled_case, measure, progress
from benchmarks.limits import Limits
from jaxnets import optim, rows
from jaxnets.kernels import (
    LogUniform,
    Uniform,
    Unigram,
    bpr_max_loss,
    draw_samples,
    gbce_loss,
    in_batch_samples,
)
from jaxnets.models import SessionGRU, next_items
from jaxnets.models.metrics import RankingMetrics
from jaxnets.models.session import is_table

ITEMS: dict[Suite, tuple[int, ...]] = {
    "quick": (10_000, 100_000),
    "standard": (10_000, 100_000, 1_000_000),
    "full": (10_000, 100_000, 1_000_000, 10_000_000),
}
DENSE = 1_000_000  # items at most: the gradient, the update and Adagrad's sum are all tables
SESSIONS, LENGTH, FEATURES, SAMPLES = 32, 32, 64, 512
TIME, ROWS = 200, 16  # of a batch of MovieLens
SECONDS: dict[Suite, float] = {"quick": 4.0, "standard": 40.0, "full": 160.0}
PEER_SEEDS, PEER_EPOCHS, PEER_TIME = 3, 5, 20
PEER_NOTE = (
    f"RecBole: {PEER_EPOCHS} epochs, the last {PEER_TIME} events of a history, the exact loss, "
    "Adam, tied embeddings and one layer of the same sizes; torch on one thread. In an epoch "
    "RecBole reads anew the history of each event, and ours each window once."
)
QUICK = "Recommender: 100,000 items at most, 3 rounds of 10, 4 s of training for each loss."


def step_case(items: int, *, by_rows: bool) -> Case:
    """A step over sessions of which the favorites move on by one item each time."""
    model = SessionGRU(items, FEATURES, dropout=0.0, rngs=nnx.Rngs(0))
    split: Any = nnx.split(model, nnx.Param, ...)
    graph, parameters, rest = split
    tables = optim.adagrad(0.1) if by_rows else optax.adagrad(0.1)
    optimizer = optim.partition(tables, optax.adam(1e-3), is_table)
    gradient = rows.value_and_grad if by_rows else jax.value_and_grad

    def step(parameters, state, number):
        uniform = jax.random.uniform(jax.random.key(number), (SESSIONS, LENGTH))
        rank = jnp.expm1(uniform * jnp.log1p(float(items))).astype(jnp.int32)
        ids = (rank + number) % items
        labels = next_items(ids)
        samples = draw_samples(
            LogUniform(items), jax.random.key(number), SAMPLES, labels, unique=False
        )

        def loss(parameters):
            return nnx.merge(graph, parameters, rest).loss(ids, samples=samples)

        value, gradients = gradient(loss)(parameters)
        updates, state = optimizer.update(gradients, state, parameters)
        return optim.apply_updates(parameters, updates), state, number + 1, value

    return compiled_case(
        f"{'rows' if by_rows else 'dense gradients'}, {items:,} items", step, parameters,
        optimizer.init(parameters), jnp.zeros((), jnp.int32), carried=3, items=items,
        table_bytes=4 * items * FEATURES,
    )  # fmt: skip


def steps(limits: Limits, suite: Suite) -> tuple[list[dict], list[dict]]:
    """The rows and the bars of the steps."""
    sizes = ITEMS[suite]
    cases = [
        step_case(items, by_rows=by_rows)
        for items in sizes
        for by_rows in (True, False)
        if by_rows or items <= DENSE
    ]
    group = f"sessions, {SESSIONS} x {LENGTH}, {FEATURES} features, {SAMPLES} samples"
    measured = measure(group, cases, 3 if suite == "quick" else 10, limits)
    by_name = {row["name"]: row for row in measured}
    memory = {row["name"]: row["extra_info"]["temp_bytes"] for row in measured}
    largest = max(items for items in sizes if items <= DENSE)

    def pair(of: dict, items: int) -> tuple:
        return of[f"dense gradients, {items:,} items"], of[f"rows, {items:,} items"]

    first, last = (by_name[f"rows, {items:,} items"] for items in (sizes[0], sizes[-1]))
    dense, rows = pair(memory, largest)
    return measured, [
        bar(
            f"step by rows: {sizes[-1]:,} / {sizes[0]:,} items",
            ratio(last, first),
            at_most=1.5,
        ),
        bar(
            "dense gradients / rows, time of a step, by items",
            *(ratio(*pair(by_name, items)) for items in sizes if items <= DENSE),
        ),
        bar(
            f"dense gradients / rows, temporary memory, {largest:,} items",
            dense / rows,
        ),
    ]


EXACT, GBCE = "exact", "gBCE"
Loss = Callable[[SessionGRU, Any, jax.Array], jax.Array]


def losses(counts: np.ndarray) -> dict[str, Loss]:
    """``loss(model, (items, segment_ids), key)`` of each name."""
    items = len(counts)
    unigram = Unigram.from_counts(counts + 1.0, power=0.75)
    log_share = jnp.asarray(np.log((counts + 1.0) / (counts + 1.0).sum()), jnp.float32)

    def exact(model, batch, key):
        return model.loss(batch[0], segment_ids=batch[1])

    def in_batch(model, batch, key):
        labels = next_items(batch[0], segment_ids=batch[1])
        samples = in_batch_samples(labels, log_share[labels], mask=labels >= 0)
        return model.loss(batch[0], segment_ids=batch[1], samples=samples)

    def sampled(sampler, function=None) -> Loss:
        def loss(model, batch, key):
            labels = next_items(batch[0], segment_ids=batch[1])
            samples = draw_samples(sampler, key, min(SAMPLES, items // 2), labels)
            return model.loss(batch[0], segment_ids=batch[1], samples=samples, function=function)

        return loss

    return {
        EXACT: exact,
        "sampled softmax": sampled(unigram),
        "in-batch softmax": in_batch,
        "BPR-max": sampled(unigram, bpr_max_loss),
        GBCE: sampled(Uniform(items), gbce_loss),
    }


def trainer(name: str, loss: Loss, model: SessionGRU, rate: optax.ScalarOrSchedule):
    """A step that trains ``model`` in place, and its optimizer; by rows unless the loss is exact.

    The exact loss has all items in its gradient, so that rows would be the table.
    """
    exact = name == EXACT
    gradient: Callable = nnx.value_and_grad if exact else rows.value_and_grad
    by_rows = optim.partition(optim.lazy_adam(rate), optax.adam(rate), is_table)
    optimizer = nnx.Optimizer(model, optax.adam(rate) if exact else by_rows, wrt=nnx.Param)

    @nnx.jit(donate_argnums=(0, 1))
    def step(model, optimizer, batch, key):
        value, gradients = gradient(loss)(model, batch, key)
        optimizer.update(model, gradients)
        return value

    return step, optimizer


_rank = nnx.jit(
    lambda model, items, lengths, labels, exclude_seen: model.label_rank(
        items, labels, lengths=lengths, exclude_seen=exclude_seen
    ),
    static_argnums=4,
)


def evaluated(model: SessionGRU, users, labels, time: int, *, exclude_seen: bool = True) -> dict:
    """NDCG and recall at 10 of the item that follows each history, among all items."""
    model.eval()
    rank = _rank(model, *sessions.last_events(users, time), labels, exclude_seen)
    metrics = RankingMetrics.create(10).update(rank).compute([10])
    model.train()
    return {"ndcg": float(metrics["ndcg@10"]), "recall": float(metrics["recall@10"])}


def known(split: sessions.Split) -> list[np.ndarray]:
    """What came before each user's event of the test."""
    pairs = zip(split.training, split.validation, strict=True)
    return [np.append(history, last) for history, last in pairs]


def train(name: str, loss: Loss, data: sessions.Histories, seconds: float, points: int) -> dict:
    """The curve: (training seconds, steps, NDCG@10, recall@10) at equal intervals."""
    split = sessions.split(data.users)
    batch_at, _ = sessions.packed_batches(sessions.windows(split.training, TIME), TIME, ROWS, 0)
    model = SessionGRU(data.items, FEATURES, rngs=nnx.Rngs(0))
    if name == GBCE:  # its scores are log-odds of one item in thousands, far from 0
        counts = np.bincount(np.concatenate(split.training), minlength=data.items) + 1.0
        assert model.projection.bias is not None
        model.projection.bias[...] = jnp.asarray(np.log(counts / counts.sum()), jnp.float32)
    step, optimizer = trainer(name, loss, model, 1e-2)
    start = time.perf_counter()
    jax.block_until_ready(step(model, optimizer, batch_at(0), jax.random.key(0)))
    compile_s, done, spent, curve = time.perf_counter() - start, 1, 0.0, []
    for point in range(1, points + 1):
        start = time.perf_counter()
        while spent + (time.perf_counter() - start) < seconds * point / points:
            jax.block_until_ready(step(model, optimizer, batch_at(done), jax.random.key(done)))
            done += 1
        spent += time.perf_counter() - start
        found = evaluated(model, known(split), split.test, TIME)
        curve.append((spent, done, found["ndcg"], found["recall"]))
    return {"curve": curve, "compile_s": compile_s, "ms_per_step": 1e3 * spent / done}


def quality(suite: Suite) -> dict:
    """Each loss's curve."""
    data = sessions.histories()
    counts = np.bincount(np.concatenate(sessions.split(data.users).training), minlength=data.items)
    seconds, points = SECONDS[suite], 2 if suite == "quick" else 8
    curves = {}
    for name, loss in losses(counts).items():
        progress(f"training with {name} starts")
        curves[name] = train(name, loss, data, seconds, points)
        progress(f"training with {name} ends: {curves[name]['ms_per_step']:.1f} ms a step")
    return {
        "data": data.name, "users": len(data.users), "items": data.items, "seconds": seconds,
        "methods": curves,
    }  # fmt: skip


def compared(python: Path, threads: int = 1) -> list[dict]:
    """RecBole's GRU4Rec and ours in turn, a row a seed: same histories, split, sizes, epochs."""
    data = sessions.histories()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        sessions.write(data, Path(folder) / "sessions" / "sessions.inter")
        for seed in range(PEER_SEEDS):
            for name, run in (("ours", _ours), ("RecBole", _recbole)):
                progress(f"{name}, seed {seed} starts: {PEER_EPOCHS} epochs")
                result = run(data, seed, folder, python, threads)
                progress(f"{name}, seed {seed} ends: {np.median(result['epoch_s']):.1f} s an epoch")
                found.append({"name": name, "seed": seed, **result})
    return found


def _ours(data: sessions.Histories, seed: int, *_: Any) -> dict:
    split = sessions.split(data.users)
    pieces = sessions.windows(split.training, PEER_TIME)
    batch_at, each = sessions.packed_batches(pieces, PEER_TIME, 2 * ROWS, seed)
    model = SessionGRU(data.items, FEATURES, rngs=nnx.Rngs(seed))
    step, optimizer = trainer(EXACT, losses(np.ones(data.items))[EXACT], model, 1e-2)
    seconds, cpu_seconds = [], []
    for epoch in range(PEER_EPOCHS):
        start, cpu_start = time.perf_counter(), time.process_time()
        for number in range(epoch * each, (epoch + 1) * each):
            value = step(model, optimizer, batch_at(number), jax.random.key(number))
        jax.block_until_ready(value)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    # RecBole leaves nothing out where a model reads sequences.
    found = evaluated(model, known(split), split.test, PEER_TIME, exclude_seen=False)
    return {"epoch_s": seconds, "epoch_cpu_s": cpu_seconds, **found}


def _recbole(data: Any, seed: int, folder: str, python: Path, threads: int) -> dict:
    settings = {
        "seed": seed, "epochs": PEER_EPOCHS, "threads": threads, "learning_rate": 5e-3,
        "embedding_size": FEATURES, "hidden_size": FEATURES, "MAX_ITEM_LIST_LENGTH": PEER_TIME,
    }  # fmt: skip
    worker = Path(__file__).with_name("recbole_worker.py")
    done = subprocess.run(
        [python, worker, folder, json.dumps(settings)], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"RecBole ended with {done.returncode}:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    metrics = answer.pop("metrics")
    return {**answer, "ndcg": metrics["ndcg@10"], "recall": metrics["recall@10"]}
