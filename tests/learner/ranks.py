"""Runs a function of `rank_programs` in several processes that form one group, with a deadline.

    results = run_ranks("train", tmp_path, num_ranks=2, strategy="ddp")

Each rank gets the environment that torchrun would give it, and the arguments as JSON; what the function returns comes
back as JSON, one result per rank. A rank that fails or is still running at the deadline fails the test with the output
of all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ports import free_port

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def run_ranks(function: str, folder: Path, *, num_ranks: int, deadline_s: float = 240.0, **arguments: Any) -> list[Any]:
    port = free_port()
    processes = [_start(function, folder, rank, num_ranks, port, arguments) for rank in range(num_ranks)]
    end = time.monotonic() + deadline_s
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if any(process.poll() not in (None, 0) for process in processes):
                break  # the others would wait for the one that failed
            time.sleep(0.05)
    finally:
        codes = [process.poll() for process in processes]
        for process in processes:
            process.kill()
            process.wait()
    outputs = [_file(folder, function, rank, "log").read_text() for rank in range(num_ranks)]
    if codes != [0] * num_ranks:
        raise AssertionError(f"{function}: exit codes {codes} (None: past {deadline_s} s)\n" + "\n".join(outputs))
    return [json.loads(_file(folder, function, rank, "json").read_text()) for rank in range(num_ranks)]


def _start(
    function: str, folder: Path, rank: int, num_ranks: int, port: int, arguments: dict[str, Any]
) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
    }
    result = _file(folder, function, rank, "json")
    with _file(folder, function, rank, "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rank_programs", function, str(result), json.dumps(arguments)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _file(folder: Path, function: str, rank: int, suffix: str) -> Path:
    return folder / f"{function}_rank{rank}.{suffix}"
