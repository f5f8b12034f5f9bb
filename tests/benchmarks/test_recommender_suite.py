"""The recommender comparison: histories, their split, steps by rows and dense, the report."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import optax
from typer.testing import CliRunner

from benchmarks import recommender, sessions
from benchmarks.__main__ import app
from benchmarks.packages import CorpusError

DENSE = "dense gradients, 50 items"


def test_the_last_event_is_the_tests_and_no_event_is_twice_a_label(tmp_path):
    data = sessions.Histories("some", [np.arange(7, dtype=np.int32), np.array([4, 2, 6])], 7)
    sessions.write(data, tmp_path / "sessions" / "sessions.inter")
    split = sessions.split(data.users)
    assert (split.validation.tolist(), split.test.tolist()) == ([5, 2], [6, 6])
    assert [history.tolist() for history in split.training] == [[0, 1, 2, 3, 4], [4]]
    pieces = sessions.windows(data.users, 4)
    assert [piece.tolist() for piece in pieces] == [[3, 4, 5, 6], [0, 1, 2, 3], [4, 2, 6]]
    items, lengths = sessions.last_events(data.users, 4)
    assert (items.tolist(), lengths.tolist()) == ([[3, 4, 5, 6], [4, 2, 6, 0]], [4, 3])
    batch_at, each = sessions.packed_batches(pieces, 8, 1, seed=0)
    found = [piece for step in range(each) for piece in _pieces(*batch_at(step))]
    assert sorted(found) == sorted(piece.tolist() for piece in pieces)


def _pieces(ids, segment_ids):
    for row, segments in zip(ids, segment_ids, strict=True):
        for segment in range(1, segments.max() + 1):
            yield row[segments == segment].tolist()


def test_a_file_is_read_by_time(tmp_path):
    path = tmp_path / "some.inter"
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += ["9\t30\t5\t12", "2\t10\t3\t11", "9\t10\t1\t11", "9\t20\t4\t12"]
    path.write_text("\n".join(lines))
    data = sessions.read(path)
    # Of users 2 and 9; the items 10, 20, 30; one second in the file's order.
    assert [history.tolist() for history in data.users] == [[0], [0, 2, 1]]
    assert data.items == 3


def test_the_suite_runs_on_generated_histories(
    monkeypatch, tmp_path, capsys, loops, cheap_parameters
):
    def offline():
        raise CorpusError("pip could not download recbole==1.2.1")

    monkeypatch.setattr(sessions, "movielens", offline)
    monkeypatch.setattr(sessions, "generated", partial(sessions.generated, 40, 60))
    monkeypatch.setattr(recommender, "ITEMS", {"quick": (50,)})
    for name, size in {"LENGTH": 4, "FEATURES": 4, "SAMPLES": 8}.items():
        monkeypatch.setattr(recommender, name, size)
    # Without a state for each parameter beside the tables, of which the updates compile for long.
    own = SimpleNamespace(adagrad=optax.adagrad, adam=optax.sgd)
    monkeypatch.setattr(recommender, "optax", own)
    # The same program for both: each compile is seconds, and the gradients' own tests compare them.
    case = recommender.step_case(50, by_rows=True)
    monkeypatch.setattr(
        recommender, "step_case",
        lambda items, by_rows: replace(case, name=case.name if by_rows else DENSE),
    )  # fmt: skip
    method = {"curve": [(1.0, 9, 0.1, 0.2), (2.0, 18, 0.3, 0.4)], "compile_s": 1, "ms_per_step": 1}
    monkeypatch.setattr(recommender, "train", lambda *args: method)
    answers = [{"epoch_s": [2.0, 1.0, 3.0], "epoch_cpu_s": [1.0], "ndcg": 0.05, "recall": 0.1}] * 2
    monkeypatch.setattr(
        recommender, "compared", lambda python: [
            {"name": name, "seed": 0, **answer}
            for name, answer in zip(("ours", "RecBole"), answers, strict=True)
        ]
    )  # fmt: skip
    options = ["--quick", "--output", str(tmp_path), "--recbole", "python"]
    run = CliRunner().invoke(app, ["recommender", *options])
    assert run.exit_code == 0, run.output
    assert "recbole==1.2.1" in run.output
    result = json.loads((tmp_path / "recommender.json").read_text())
    assert [row["name"] for row in result["benchmarks"]] == [
        "rows, 50 items",
        DENSE,
    ]
    assert [len(row["values"]) for row in result["bars"]] == [1, 1, 1]
    assert len(result["recommender"]["methods"]) == 5
    page = (tmp_path / "recommender.html").read_text()
    assert "generated histories: 40 users, 60 items" in page
    assert "<td>RecBole</td><td>0</td><td>2.0</td>" in page
