"""Translation of English verses with 40,000 words of output, sampled softmax and two-sided buckets.

python -m examples.seq2seq
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import sacrebleu
import typer
from flax import nnx
from rich.console import Console

from examples.shared import Output, save
from examples.text import Side, parallel
from jaxnets import optim
from jaxnets.models import Seq2Seq, Seq2SeqConfig, beam_search, greedy_search
from jaxnets.models.seq2seq import END, is_table, sampled_gradients
from jaxnets.sequences import BatchSource, bucket_plan, optimal_pair_boundaries
from jaxnets.training import fit

BATCH_DECODE, MAX_TIME, SOURCE_SIZES = 64, 80, (24, 40, 64)


def main(
    target: Annotated[str, typer.Option(help="r Russian, v Spanish, l French, e German.")] = "r",
    epochs: Annotated[int, typer.Option(help="Passes over the 29,546 training verses.")] = 6,
    vocab_size: Annotated[int, typer.Option(help="The most words of a side.")] = 40_000,
    features: int = 512,
    output: Output = Path("results"),
    checkpoints: Annotated[Path | None, typer.Option(help="Folder to resume from.")] = None,
) -> None:
    """Trains, then translates the held-out verses and says their BLEU."""
    console = Console()
    english, other = parallel("k", target, vocab_size)
    config = Seq2SeqConfig(len(english.words), len(other.words), features=features)
    lengths = np.array(
        [[len(s), len(t)] for s, t in zip(english.training, other.training, strict=True)]
    )
    boundaries = optimal_pair_boundaries(lengths[:, 0], lengths[:, 1], 3, 2)
    plan = bucket_plan(lengths, boundaries, token_budget=config.batch * int(lengths.sum(1).mean()))
    console.print(f"{len(english.words):,} English words, {len(other.words):,} of the target")
    console.print(str(plan))
    source = BatchSource(plan, [english.training, other.training], epochs=epochs)
    model = Seq2Seq(config, rngs=nnx.Rngs(0))
    steps = len(source)
    schedule = optax.warmup_cosine_decay_schedule(0, config.learning_rate, 200, steps)
    optimizer = optim.partition(
        optim.lazy_adam(config.learning_rate), optax.adam(schedule), is_table
    )
    begun = time.perf_counter()
    result = fit(
        model, None, source.__getitem__, steps, optimizer=optimizer,
        key=jax.random.key(0), clip_norm=config.clip_norm, gradients=sampled_gradients,
        evaluate=lambda model: {"perplexity": perplexity(model, english, other)},
        every=plan.batches, monitor="perplexity", mode="min", folder=checkpoints, console=console,
    )  # fmt: skip
    minutes = (time.perf_counter() - begun) / 60
    model.eval()
    scores = {}
    for name, beam in (("greedy", 1), ("beam of 4", 4)):
        found = translate(model, english.held_out, other.words, beam)
        scores[name] = sacrebleu.corpus_bleu(
            found, [other.texts], force=True
        ).score  # tokens, in lower case
    for i in range(0, 300, 100):
        console.print(f"  {english.texts[i]}\n  = {other.texts[i]}\n  > {found[i]}")
    picture = save(draw_attention(model, english, other), output, "seq2seq")
    console.print(f"training {minutes:.1f} minutes; picture: {picture}")
    best = min(row["perplexity"] for row in result.history)
    console.print(
        f"held out: exact perplexity {best:.1f}, BLEU "
        + ", ".join(f"{score:.2f} ({name})" for name, score in scores.items())
    )


def translate(model, sentences, words, beam: int) -> list[str]:
    """The translations, words with spaces between them."""
    found = [""] * len(sentences)
    lengths = [len(sentence) for sentence in sentences]
    bounds = [size for size in SOURCE_SIZES if size < max(lengths)] + [max(lengths)]
    plan = bucket_plan(lengths, bounds, batch=BATCH_DECODE)
    batches = BatchSource(plan, [sentences])
    for batch in (batches[i] for i in range(len(batches))):
        arrays = jnp.asarray(batch.sequences[0]), jnp.asarray(batch.lengths[0])
        if beam == 1:
            ids = greedy_search(model, *arrays, max_time=MAX_TIME)
        else:
            ids = beam_search(model, *arrays, max_time=MAX_TIME, beam=beam)[0][:, 0]
        there = batch.examples >= 0
        for i, row in zip(batch.examples[there], np.asarray(ids)[there], strict=True):
            found[i] = " ".join(words[id] for id in row if id != END)
    return found


_summed_loss = nnx.jit(lambda model, *arrays: model.loss(*arrays, reduction="sum"))


def perplexity(model: Seq2Seq, english: Side, other: Side) -> float:
    """Of the held-out targets, over all words: the training's sampling has no part in it."""
    lengths = np.array(
        [[len(s), len(t)] for s, t in zip(english.held_out, other.held_out, strict=True)]
    )
    longest = lengths.max(0)
    bounds = [tuple(int(n) for n in np.minimum(size, longest)) for size in (32, 64, 512)]
    plan = bucket_plan(lengths, bounds, token_budget=4096)
    batches = BatchSource(plan, [english.held_out, other.held_out])
    total = 0.0
    for batch in (batches[i] for i in range(len(batches))):
        (source, target), (sources, targets) = batch.sequences, batch.lengths
        total += float(_summed_loss(model, *map(jnp.asarray, (source, sources, target, targets))))
    return float(np.exp(total / (lengths[:, 1] - 1).sum()))


def draw_attention(model: Seq2Seq, english: Side, other: Side):
    """Where the decoder looked while it wrote one translation."""
    index = min(range(len(english.held_out)), key=lambda i: abs(len(english.held_out[i]) - 14))
    source = jnp.asarray(english.held_out[index])[None]
    memory = model.memory(source, jnp.array([source.shape[1]]))
    ids = greedy_search(model, source, jnp.array([source.shape[1]]), max_time=30)[0]
    written = [int(i) for i in ids if i != END]
    inputs = jnp.array([[2, *written[:-1]]])
    outputs, _ = model.decoder(model.target_embedding[inputs], memory.carries)
    weights = jax.nn.softmax(jnp.einsum("btf,bsf->bts", outputs, memory.keys))[0]
    figure, axes = plt.subplots(figsize=(8, 6))
    axes.imshow(weights, cmap="viridis", aspect="auto")
    axes.set_xticks(range(source.shape[1]), [english.words[i] for i in source[0]], rotation=70)
    axes.set_yticks(range(len(written)), [other.words[i] for i in written])
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    typer.run(main)
