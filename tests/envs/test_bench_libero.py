"""The benchmark of a whole training in LIBERO, at its smallest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.libero, pytest.mark.slow]


def test_every_process_of_a_training_costs_something_and_the_table_has_a_row_for_it(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    sizes = ["--horizon", "16", "--micro-batch", "2", "--accumulation", "1"]
    once = ["--rounds", "1", "--updates", "16", "--skip", "1", "--variants", "reuse_passes", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench_libero"), *sizes, *once],
        env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| this, reuse_passes |" in done.stdout
    record = json.loads(file.read_text(encoding="utf-8"))
    assert set(record["source"]) == {"commit", "dirty"}
    assert record["versions"]["mujoco"]
    (cost,) = record["results"]["this, reuse_passes"]
    assert set(cost["cpu_s"]) == {"learner", "inference_worker", "env_worker"}
    assert cost["episodes"] > 0
    assert cost["cpu_s"]["env_worker"] > 0
