"""The same over two processes that talk by gloo on the loopback interface."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np


def test_two_processes_train_as_one_device():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.sharding.process", address]
    processes = [
        subprocess.Popen(
            [*command, str(number)], cwd=root, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        results = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    tolerance = 8 * np.finfo(np.float32).eps * 24**0.5
    for process, (output, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors[-3000:]
        (line,) = [line for line in output.splitlines() if line.startswith("differences")]
        exact, rows = map(float, line.split()[1:])
        assert exact < tolerance
        assert rows < tolerance
