"""`vla-rl eval`: what it hands to the evaluation, and what it prints."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from vla_rl.cli.eval_view import EvaluationProgress, results_table
from vla_rl.cli.main import app
from vla_rl.envs.libero.protocol import Protocol
from vla_rl.errors import CellFailureError, UserError
from vla_rl.evaluation.episode_log import EPISODES_FILE, EpisodeLog, EpisodeResult
from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.eval_results import summarise
from vla_rl.evaluation.outcome import EvaluationReport

Progress = Callable[[int, int, int], None]
Call = tuple[str, EvalOptions]


def episodes(outcomes: list[bool]) -> list[EpisodeResult]:
    return [
        EpisodeResult(
            suite="libero_goal", task_id=3, init_state=state, seed=0, success=success, env_steps=80,
            episode_return=float(success), seconds=1.0,
        )
        for state, success in enumerate(outcomes)
    ]  # fmt: skip


REPORT = EvaluationReport(
    checkpoint="runs/x/checkpoints/optimizer_step_3",
    folder=Path("runs/x/eval/y"),
    summary=summarise(episodes([True] * 8 + [False] * 2)),
    deviations=("horizon 9 control steps instead of 300",),
    trained_on="libero_goal (tasks: all), sampled initial states",
    init_states="standard",
    controls=(),
    videos=None,
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call of the evaluation, which is replaced; the checkpoint 'wrong' is refused, and 'slow' is too slow."""
    noted: list[Call] = []

    def evaluate(checkpoint: str, choices: EvalOptions, *, progress: Progress) -> EvaluationReport:
        if checkpoint == "slow":
            raise CellFailureError("no sign of life for 130 s (allowed: 120 s, rollout.step_timeout_s)")
        if checkpoint == "wrong":
            raise UserError("checkpoint wrong: no such folder")
        noted.append((checkpoint, choices))
        for done in range(21):
            progress(done, 20, done // 2)
        return REPORT

    module = ModuleType("vla_rl.evaluation.evaluate")
    module.evaluate = evaluate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vla_rl.evaluation.evaluate", module)
    return noted


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", *arguments])


def test_the_options_reach_the_evaluation(calls: list[Call]) -> None:
    result = invoke(
        "runs/x", "--suite", "libero_goal,libero_10", "--suite", "libero_object", "--tasks", "0,2-3",
        "--episodes-per-task", "5", "--protocol", "long", "--init-states", "spare", "--horizon", "9",
        "--temperature", "1.6", "--seed", "7,8", "--control", "instruction,blind", "--video", "failures",
        "--perturb", "camera:3",
        "--step-timeout", "600", "--start-timeout", "900",
        "--workers", "2", "--serial", "--assets", "proxy", "--profile", "rlinf", "--out", "there", "--allow-unpinned",
        "--statistics", "libero_90_no_noops_trajall", "--no-self-test",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert calls == [
        (
            "runs/x",
            EvalOptions(
                suites=("libero_goal", "libero_10", "libero_object"), tasks=(0, 2, 3), episodes_per_task=5,
                protocol=Protocol("long"), init_states="spare", horizon=9, temperature=1.6, seeds=(7, 8),
                controls=("blind", "instruction"), perturb="camera:3", video="failures", workers=2, serial=True,
                step_timeout=600.0, start_timeout=900.0,
                assets="proxy", profile="rlinf", out=Path("there"), allow_unpinned=True,
                statistics="libero_90_no_noops_trajall", self_test=False,
            ),
        )
    ]  # fmt: skip


def test_without_options_the_training_s_own_suite_is_evaluated_on_50_states(calls: list[Call]) -> None:
    assert invoke("runs/x").exit_code == 0
    assert calls == [("runs/x", EvalOptions())]
    usual = EvalOptions()
    assert (usual.suites, usual.tasks, usual.episodes_per_task, usual.protocol.name) == ((), None, 50, "oft")
    assert (usual.seeds, usual.temperature, usual.horizon, usual.init_states) == ((0,), None, None, None)


def test_json_is_all_that_stands_on_stdout(calls: list[Call]) -> None:
    printed = json.loads(invoke("runs/x", "--json").stdout)
    assert printed["trained_on"] == REPORT.trained_on
    assert printed["suites"][0]["success_rate"] == 0.8
    assert calls


@pytest.mark.usefixtures("calls")
def test_beside_every_score_stands_what_it_was_trained_and_evaluated_on() -> None:
    lines = invoke("runs/x").stdout.splitlines()
    assert lines[2].split()[:7] == ["libero_goal", "all", "10", "80.0%", "49.0%", "to", "94.3%"]
    assert len(lines[2].split()) == 10  # and the bootstrap's
    assert lines[1].split() == ["libero_goal", "3", "10", "80.0%", "49.0%", "to", "94.3%"]
    assert "evaluated on standard initial states; trained on libero_goal (tasks: all), sampled initial states" in lines
    assert "deviation from the protocol: horizon 9 control steps instead of 300" in lines


def test_the_table_on_a_terminal_holds_rates_intervals_and_initial_states() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    console.print(results_table(REPORT))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert len(text.splitlines()[1:-2]) == 5  # head, rule, a task, its suite, room: nothing is folded at 80 columns
    for cell in ("libero_goal", "8/10", "80.0 %", "49.0 to 94.3", "standard", "sampled initial"):
        assert cell in text


@pytest.mark.usefixtures("calls")
def test_a_failure_names_the_option_that_would_have_prevented_it() -> None:
    result = invoke("slow")
    assert result.exit_code == 1
    assert "no sign of life for 130 s (allowed: 120 s, --step-timeout)" in result.stderr


@pytest.mark.usefixtures("calls")
def test_a_checkpoint_that_is_refused_is_the_user_s_mistake() -> None:
    result = invoke("wrong")
    assert (result.exit_code, result.stderr) == (2, "error: checkpoint wrong: no such folder\n")


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    "arguments",
    [
        ["runs/x", "--seed", "0,x"],
        ["runs/x", "--control", "blind,deaf"],
        ["runs/x", "--tasks", "3-1"],
        ["runs/x", "--profile", "x"],
        [],
    ],
)
def test_what_cannot_be_read_is_told_before_anything_is_loaded(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.usefixtures("calls")
def test_a_log_file_gets_a_line_at_the_start_and_ten_of_progress_with_the_time_left() -> None:
    lines = invoke("runs/x").stderr.splitlines()
    assert [line.split("/")[0] for line in lines] == [str(done) for done in range(0, 21, 2)]
    assert lines[0] == "0/20 episodes, 0 successes, starting"
    assert lines[1] == "2/20 episodes, 1 successes, 0:00:00 left"
    assert lines[-1] == "20/20 episodes, 10 successes, done"


def test_the_time_left_counts_only_what_was_played_now_and_no_time_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("vla_rl.cli.eval_view.time.monotonic", lambda: clock[0])
    with EvaluationProgress() as progress:
        progress(50, 100, 0)  # an interrupted evaluation goes on
        clock[0] = 600.0
        progress(60, 100, 0)  # how long the first ones take says more about the start of processes
        clock[0] = 660.0
        progress(70, 100, 0)  # ten episodes in a minute, thirty to go
    assert capsys.readouterr().err.splitlines() == [
        "50/100 episodes, 0 successes, starting",
        "60/100 episodes, 0 successes, no estimate yet",
        "70/100 episodes, 0 successes, 0:03:00 left",
    ]


def evaluation(folder: Path, outcomes: list[bool]) -> str:
    with EpisodeLog(folder / EPISODES_FILE) as log:
        for episode in episodes(outcomes):
            log.append(episode)
    return str(folder)


def test_two_evaluations_are_compared_in_words(tmp_path: Path) -> None:
    better = evaluation(tmp_path / "a", [True] * 20)
    worse = evaluation(tmp_path / "b", [False] * 10 + [True] * 10)
    lines = invoke("--compare", better, worse).stdout.splitlines()
    assert lines[0].split()[:3] == ["A", "100.0", "%"]
    assert lines[3].startswith("A - B  +50.0 points, 95 % interval +")
    assert "only A succeeded in 10, only B in 0: McNemar mid-p 0.00098 (exact 0.002)" in lines
    assert lines[5].startswith("The difference is distinguishable: A is better.")


def test_a_comparison_with_anything_else_is_refused(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "a", [True])
    other = evaluation(tmp_path / "b", [True])
    assert invoke("--compare", one, other, "--json").exit_code == 0
    for ignored, named in ((["runs/x"], "checkpoint"), (["--workers", "2", "--suite", "x"], "--suite, --workers")):
        result = invoke("--compare", one, other, *ignored)
        assert (result.exit_code, result.stderr.strip().endswith(f"leave out {named}")) == (2, True)
    result = invoke("--compare", one, str(tmp_path))
    assert result.exit_code == 2
    assert "holds no evaluation" in result.stderr
    assert invoke("--compare", one, one).exit_code == 2
