"""`vla-rl eval`: what it hands to the evaluation, and what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from vla_rl.cli.main import app


class FakeReport:
    """Stands in for the report of an evaluation."""

    def to_json(self) -> str:
        return json.dumps({"success_rate": 0.5})

    def __str__(self) -> str:
        return "a table"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every call of the evaluation, which is replaced; a checkpoint called 'wrong' is refused."""
    noted: list[dict[str, Any]] = []

    def evaluate(checkpoint: Path, **arguments: Any) -> FakeReport:
        if checkpoint.name == "wrong":
            raise ValueError("checkpoint wrong: no such folder")
        noted.append({"checkpoint": checkpoint, **arguments})
        for done in range(1, 21):
            arguments["progress"](done, 20, done // 2)
        return FakeReport()

    module = ModuleType("vla_rl.evaluation.evaluate")
    module.evaluate = evaluate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vla_rl.evaluation.evaluate", module)
    return noted


def test_the_options_reach_the_evaluation(calls: list[dict[str, Any]]) -> None:
    result = CliRunner().invoke(
        app,
        [
            "eval",
            "runs/x",
            "--suite",
            "libero_goal",
            "--tasks",
            "0,2-3",
            "--episodes-per-task",
            "5",
            "--workers",
            "2",
            "--seed",
            "7",
            "--out",
            "there",
        ],
    )
    assert (result.exit_code, result.stdout) == (0, "a table\n")
    (call,) = calls
    call.pop("progress")
    assert call == {
        "checkpoint": Path("runs/x"), "suite": "libero_goal", "tasks": [0, 2, 3], "episodes_per_task": 5, "workers": 2,
        "seed": 7, "out": Path("there"), "horizon": None,
    }  # fmt: skip


def test_json_is_all_that_stands_on_stdout(calls: list[dict[str, Any]]) -> None:
    result = CliRunner().invoke(app, ["eval", "runs/x", "--json"])
    assert json.loads(result.stdout) == {"success_rate": 0.5}
    assert calls


@pytest.mark.usefixtures("calls")
def test_a_checkpoint_that_is_refused_is_the_user_s_mistake() -> None:
    result = CliRunner().invoke(app, ["eval", "wrong"])
    assert (result.exit_code, result.stderr) == (2, "error: checkpoint wrong: no such folder\n")


@pytest.mark.usefixtures("calls")
def test_a_log_file_gets_ten_lines_of_progress() -> None:
    lines = CliRunner().invoke(app, ["eval", "runs/x"]).stderr.splitlines()
    assert [line.split("/")[0] for line in lines] == [str(done) for done in range(2, 21, 2)]
    assert lines[-1] == "20/20 episodes, 10 successes"
