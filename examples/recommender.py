"""The next movie of a history: GRU4Rec over all movies, trained by rows with a loss of choice.

python -m examples.recommender

MovieLens 100K is GroupLens': for research, and not to be redistributed. It is read out of the PyPI
package recbole; where that can't be had, histories are generated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import typer
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks import sessions
from examples.shared import Output, save
from jaxnets import optim, rows
from jaxnets.kernels import LabelRank, Unigram, bpr_max_loss, draw_samples, gbce_loss
from jaxnets.models import SessionGRU, next_items
from jaxnets.models.metrics import RankingMetrics
from jaxnets.models.session import is_table
from jaxnets.training import fit

TIME, ROWS = 200, 16  # of a batch of packed histories; a longer history is cut


class Loss(StrEnum):
    """Over all items, or over sampled ones."""

    exact = "exact"
    sampled = "sampled"
    bpr_max = "bpr-max"
    gbce = "gbce"


FUNCTIONS = {Loss.bpr_max: bpr_max_loss, Loss.gbce: gbce_loss}


def main(
    loss: Annotated[Loss, typer.Option(help="Of the training.")] = Loss.sampled,
    epochs: Annotated[int, typer.Option(help="Passes over the training histories.")] = 12,
    num_sampled: Annotated[int, typer.Option(help="Items that a step samples.")] = 512,
    seed: int = 0,
    output: Output = Path("results"),
) -> None:
    """Trains on MovieLens 100K, and ranks each user's last movie among all of them."""
    console = Console()
    data = sessions.histories()
    split = sessions.split(data.users)
    counts = np.bincount(np.concatenate(split.training), minlength=data.items)
    console.print(f"{data.name}: {len(data.users):,} users, {data.items:,} items")
    pieces = sessions.windows(split.training, TIME)
    batch_at, each = sessions.packed_batches(pieces, TIME, ROWS, seed)
    steps = epochs * each
    model = SessionGRU(data.items, 64, rngs=nnx.Rngs(seed))
    if loss == Loss.gbce:  # its scores are log-odds of one item in thousands, far from 0
        assert model.projection.bias is not None
        model.projection.bias[...] = jnp.asarray(np.log((counts + 1) / counts.sum()), jnp.float32)
    begun = time.perf_counter()
    fit(
        model, None, batch_at, steps, gradients=gradients(loss, counts, num_sampled),
        optimizer=optimizer(loss, steps), key=jax.random.key(seed), every=4 * each,
        evaluate=lambda model: of_ranks(ranks(model, split.training, split.validation)),
        monitor="ndcg@10", console=console,
    )  # fmt: skip
    minutes = (time.perf_counter() - begun) / 60
    model.eval()
    known = [np.append(*pair) for pair in zip(split.training, split.validation, strict=True)]
    found = {
        "SessionGRU, seen items left out": ranks(model, known, split.test),
        "SessionGRU, over all": ranks(model, known, split.test, exclude_seen=False),
        "popularity, seen items left out": by_popularity(counts, known, split.test),
    }
    table = Table("held out: each user's last event", "recall@10", "NDCG@10", "MRR")
    for name, rank in found.items():
        table.add_row(name, *(f"{value:.4f}" for value in of_ranks(rank).values()))
    console.print(table)
    picture = save(draw(counts, split.test, found), output, "recommender")
    console.print(f"loss {loss}; training {minutes:.1f} minutes; picture: {picture}")


def gradients(loss: Loss, counts: np.ndarray, num_sampled: int) -> Callable:
    """What gives the loss and its gradients, by rows unless the loss is over all items."""
    sampler = Unigram.from_counts(counts + 1.0, power=0.0 if loss == Loss.gbce else 0.75)

    def exact(model, batch, key):
        items, segment_ids = batch
        return model.loss(items, segment_ids=segment_ids), {}

    def over_samples(model, batch, key):
        items, segment_ids = batch
        labels = next_items(items, segment_ids=segment_ids)
        samples = draw_samples(sampler, key, num_sampled, labels)
        options = {"samples": samples, "function": FUNCTIONS.get(loss)}
        return model.loss(items, segment_ids=segment_ids, **options), {}

    if loss == Loss.exact:
        return nnx.value_and_grad(exact, has_aux=True)
    return rows.value_and_grad(over_samples, has_aux=True)


def optimizer(loss: Loss, steps: int) -> optax.GradientTransformation:
    """Adam, and for gradients by rows the one that moves only these."""
    rate = optax.cosine_decay_schedule(1e-2, steps, alpha=0.05)
    if loss == Loss.exact:
        return optax.adam(rate)
    return optim.partition(optim.lazy_adam(rate), optax.adam(rate), is_table)


_rank = nnx.jit(
    lambda model, items, lengths, labels, exclude_seen: model.label_rank(
        items, labels, lengths=lengths, exclude_seen=exclude_seen
    ),
    static_argnums=4,
)


def ranks(model: SessionGRU, users, labels: np.ndarray, *, exclude_seen: bool = True) -> LabelRank:
    """Where each user's next item stands among all items."""
    return _rank(model, *sessions.last_events(users, TIME), labels, exclude_seen)


def by_popularity(counts: np.ndarray, users, labels: np.ndarray) -> LabelRank:
    """The same, of how often an item was seen in training."""
    above, ties = np.zeros((2, len(labels)), np.int32)
    for number, (seen, label) in enumerate(zip(users, labels, strict=True)):
        others = np.ones(len(counts), bool)
        others[seen], others[label] = False, False
        above[number] = (counts[others] > counts[label]).sum()
        ties[number] = (counts[others] == counts[label]).sum()
    return LabelRank(jnp.asarray(above), jnp.asarray(ties))


def of_ranks(
    rank: LabelRank, weights: np.ndarray | None = None, items: int = 10_000
) -> dict[str, float]:
    """Recall and NDCG at 10, and the mean reciprocal rank, over all items."""
    metrics = RankingMetrics.create(items).update(rank, token_weights=weights).compute([10, items])
    return {
        "recall@10": float(metrics["recall@10"]),
        "ndcg@10": float(metrics["ndcg@10"]),
        "mrr": float(metrics[f"mrr@{items}"]),
    }


def draw(counts: np.ndarray, labels: np.ndarray, found: dict[str, LabelRank]):
    """Recall at 10 of rare and of popular items, a tenth of all training events each."""
    order = np.argsort(-counts, kind="stable")
    place = np.empty(len(counts), int)
    share = np.cumsum(counts[order]) / counts.sum()
    place[order] = np.minimum(10 * (share - counts[order] / counts.sum() / 2), 9).astype(int)
    figure, axes = plt.subplots(figsize=(8, 4.5))
    width = 0.8 / len(found)
    for number, (name, rank) in enumerate(found.items()):
        recall = [of_ranks(rank, place[labels] == tenth)["recall@10"] for tenth in range(10)]
        axes.bar(np.arange(10) + number * width, recall, width, align="edge", label=name)
    names = [f"{tenth + 1}\n{(place == tenth).sum()} items" for tenth in range(10)]
    axes.set_xticks(np.arange(10) + 0.4, names, fontsize=7)
    axes.set(xlabel="tenth of all events, the most popular items first", ylabel="recall@10")
    axes.legend()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    typer.run(main)
