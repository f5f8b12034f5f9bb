"""RecBole's GRU4Rec on given histories, in an environment of its own; see ``recommender.py``.

PYTHON recbole_worker.py FOLDER SETTINGS, with Python 3.11 and recbole 1.2.1, numpy below 2. In
FOLDER stands sessions/sessions.inter in RecBole's format, the place in a history for its time.
SETTINGS are JSON, RecBole's own; the answer is a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import GRU4Rec
from recbole.trainer import Trainer
from recbole.utils import init_seed

FIXED = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {
        "split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full",
    },
    "train_neg_sample_args": None, "metrics": ["Recall", "NDCG", "MRR"], "topk": [10],
    "valid_metric": "NDCG@10", "show_progress": False, "use_gpu": False, "state": "CRITICAL",
    "eval_step": 0, "stopping_step": 0,
}  # fmt: skip


def main(folder: str, settings: dict) -> dict:
    """Seconds of each epoch, on the clock and of the CPU, and the metrics of the test."""
    torch.set_num_threads(settings.pop("threads"))
    config = Config(
        model=GRU4Rec, dataset="sessions",
        config_dict={**FIXED, "data_path": folder, "checkpoint_dir": folder, **settings},
    )  # fmt: skip
    init_seed(config["seed"], True)
    training, _, test = data_preparation(config, create_dataset(config))
    model = GRU4Rec(config, training.dataset)
    trainer = Trainer(config, model)
    seconds, cpu_seconds = [], []
    for epoch in range(config["epochs"]):
        start, cpu_start = time.perf_counter(), time.process_time()
        trainer._train_epoch(training, epoch, show_progress=False)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    found = trainer.evaluate(test, load_best_model=False, show_progress=False)
    metrics = {name: float(value) for name, value in found.items()}
    return {"epoch_s": seconds, "epoch_cpu_s": cpu_seconds, "metrics": metrics}


if __name__ == "__main__":
    answer = main(sys.argv[1], json.loads(sys.argv[2]))
    print(json.dumps(answer), flush=True)
