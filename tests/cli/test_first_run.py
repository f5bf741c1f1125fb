"""The first run of the README, through the program itself: it learns, resumes, is evaluated and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vla_rl", *arguments], cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy recipe as it is shipped, trained once."""
    folder = tmp_path_factory.mktemp("first_run")
    done = program("train", "toy", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "finished after 400 optimizer steps" in done.stdout
    return folder / "runs" / "toy"


def test_the_toy_recipe_learns_its_task(run: Path) -> None:
    success = [row["rollout/success_rate"] for row in rows(run) if row.get("rollout/success_rate") is not None]
    assert success[0] < 0.4  # chance reaches the goal in about one episode of six
    assert success[-1] > 0.75  # usually above 0.98; the last 100 episodes of a starved run include earlier ones


def test_a_run_leaves_what_the_readme_promises(run: Path) -> None:
    expected = ["recipe.yaml", "manifest.json", "metrics.jsonl", "tensorboard", "checkpoints/latest", "logs", "eval"]
    assert [name for name in expected if not (run / name).exists()] == []
    assert (run / "checkpoints" / "optimizer_step_400").is_dir()


def test_a_finished_run_is_not_written_over(run: Path) -> None:
    done = program("train", "toy", cwd=run.parents[1])
    assert done.returncode == 2
    assert "--resume" in done.stderr


def test_a_run_is_evaluated_and_reported(run: Path) -> None:
    done = program(
        "eval", str(run), "--episodes-per-task", "10", "--out", str(run / "eval" / "again"), "--json", cwd=run
    )
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    pytest.importorskip("matplotlib")
    assert program("report", str(run), cwd=run).returncode == 0
    assert (run / "report.html").stat().st_size > 1000


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    small = ["budget.optimizer_steps=100000", "budget.minutes=3", "evaluation.episodes_per_task=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_rl", "train", "toy", *small],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    run = tmp_path / "runs" / "toy"
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not rows(run):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the run
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "vla-rl train runs/toy --resume" in out
    steps = max(row["optimizer_steps"] for row in rows(run))

    done = program(
        "train", "runs/toy", "--resume", f"budget.optimizer_steps={steps + 5}", "checkpoint.every_optimizer_steps=1000",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"finished after {steps + 5} optimizer steps" in done.stdout
