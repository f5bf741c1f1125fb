"""Evaluations while a supervised run trains: each is made once, also by a run that ended before it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytestmark = [pytest.mark.libero, pytest.mark.slow]

PLAYS = (
    "demos.suite=libero_spatial",
    "evaluation={episodes_per_task: 1, tasks: [7], horizon: 8, every_optimizer_steps: 2}",
)


def evaluated(run_dir: Path) -> list[int]:
    """Optimizer steps of the log points with an evaluation."""
    points = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [point["optimizer_steps"] for point in points if "supervised/success_rate" in point]


def logged(run_dir: Path) -> list[int]:
    """Optimizer steps of the log points with a loss."""
    points = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [point["optimizer_steps"] for point in points if "supervised/loss" in point]


def test_a_resumed_run_makes_the_evaluation_before_which_it_ended_and_none_twice(run) -> None:
    """A run killed in an evaluation leaves a checkpoint of that step and no log point of the evaluation."""
    ended = run("demos.suite=libero_spatial", "budget.optimizer_steps=2")
    assert (logged(ended.run_dir), evaluated(ended.run_dir)) == ([1, 2], [])
    resumed = run(*PLAYS, "budget.optimizer_steps=5", resume=True)
    assert logged(resumed.run_dir) == [1, 2, 3, 4, 5]
    assert evaluated(resumed.run_dir) == [2, 4]
    shutil.rmtree(resumed.checkpoint)  # so that it goes on from a step whose evaluation is there
    again = run(*PLAYS, "budget.optimizer_steps=6", resume=True)
    assert evaluated(again.run_dir) == [2, 4]
    assert logged(again.run_dir) == [1, 2, 3, 4, 5, 6]
