"""Cases in processes of their own, and what more cores bring."""

import os
import sys

import pytest

from benchmarks import threads, workers
from benchmarks.harness import Case
from benchmarks.workers import WorkerCase


def test_a_worker_runs_once_a_line_and_its_end_is_an_error(tmp_path):
    (tmp_path / "echo.py").write_text(
        "import sys\n"
        "for line in sys.stdin:\n"
        "    if sys.argv[1] == 'silent': sys.exit(3)\n"
        "    print(sys.argv[1], flush=True)\n"
        "    if sys.argv[1] == 'last': sys.exit(4)\n"
    )
    path = {"PYTHONPATH": str(tmp_path)}
    case = WorkerCase("echo", "echo", 5, environment=path)
    assert [case.run(), case.run()] == ["5\n", "5\n"]
    case.close()
    assert case.process.returncode == 0
    with pytest.raises(RuntimeError, match="at once ended with 3"):
        WorkerCase("at once", "echo", "silent", environment=path).run()
    last = WorkerCase("short", "echo", "last", environment=path)
    last.run()
    last.process.wait(timeout=60)  # nobody reads the next line
    with pytest.raises(RuntimeError, match="short ended with 4"):
        last.run()


def test_it_answers_each_line(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(sys, "stdin", ["\n", "\n"])
    workers.answer(lambda: ran.append(1))
    assert len(ran) == 2
    assert capsys.readouterr().out == "done\ndone\n"


def test_one_core_and_all_of_them_take_turns(monkeypatch):
    made, order = [], []

    class Fake(Case):
        def __init__(self, name, module, *arguments):
            super().__init__(name, lambda: order.append(arguments))
            made.append((module, *arguments))

        def close(self):
            order.append("closed")

    monkeypatch.setattr(threads, "WorkerCase", Fake)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    rows, bars = threads.run(None, "standard", ["LSTM"])
    assert made == [("benchmarks.threads", "LSTM", 1), ("benchmarks.threads", "LSTM", 4)]
    assert [row["name"] for row in rows] == ["on 1 of 4 cores", "on 4 of 4 cores"]
    assert [row["name"] for row in bars] == ["LSTM: time on 1 core / on 4"]
    assert order[-2:] == ["closed", "closed"]
    assert threads.run(None, "quick", ["LSTM"]) == ([], [])
    monkeypatch.setattr(threads, "cores", lambda: 1)
    assert threads.run(None, "full", ["LSTM"]) == ([], [])
    assert set(threads.CASES) == {"exact loss", "sampled step", "LSTM", "1x1 convolution"}
