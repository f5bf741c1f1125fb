"""Evaluations while a supervised run trains: each is made once, also by a run that ended before it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from sft_demos import RECIPE

from vla_rl.errors import CellFailureError
from vla_rl.recipe import build_supervised_recipe
from vla_rl.sft import stage, supervised_loop

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
    resumed = run(*PLAYS, "budget.optimizer_steps=3", resume=True)
    assert logged(resumed.run_dir) == [1, 2, 3]
    assert evaluated(resumed.run_dir) == [2]
    shutil.rmtree(resumed.checkpoint)  # so that it goes on from a step whose evaluation is there
    again = run(*PLAYS, "budget.optimizer_steps=4", resume=True)
    assert evaluated(again.run_dir) == [2]
    assert logged(again.run_dir) == [1, 2, 3, 4]


def test_an_evaluation_that_fails_costs_no_training(demos, tmp_path, monkeypatch) -> None:
    play, told = supervised_loop.play_while_training, io.StringIO()

    def fail_once(*given, optimizer_steps: int, **named):
        if optimizer_steps == 2:
            raise CellFailureError("a simulator died")
        return play(*given, optimizer_steps=optimizer_steps, **named)

    monkeypatch.setattr(supervised_loop, "play_while_training", fail_once)
    recipe = build_supervised_recipe(RECIPE.format(path=demos), [*PLAYS, "budget.optimizer_steps=5"])
    console = Console(file=told, width=200)
    done = stage.supervise(recipe, run_dir=tmp_path / "run", resume=False, console=console)
    assert (done.interrupted, evaluated(done.run_dir)) == (False, [4])
    assert "warning: no evaluation of optimizer step 2, the training goes on: a simulator died" in told.getvalue()
