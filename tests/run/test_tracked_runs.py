"""Whole runs with a tracker."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_trackers import Fake, events
from rich.console import Console

from vla_rl import train as training
from vla_rl.errors import RunFailureError, UserError
from vla_rl.learner.stepping import TorchStrategy
from vla_rl.recipe import RecipeError, build_supervised_recipe, find_recipe, load_recipe, load_supervised_recipe
from vla_rl.run.couriers import Couriers
from vla_rl.sft import supervised_evaluations
from vla_rl.tracking import TrackersSection, mlflow, trackio, wandb

SMALL = [
    "runtime.mode=serial", "runtime.device=cpu", "runtime.threads_per_process=1", "logging.tensorboard=false",
    "budget={optimizer_steps: 4}", "evaluation.episodes_per_task=1", "checkpoint.every_optimizer_steps=2",
]  # fmt: skip


def run(tmp_path: Path, *overrides: str, name: str = "run", resume: bool = False) -> str:
    stream = io.StringIO()
    recipe = load_recipe(find_recipe("toy"), [*SMALL, *overrides])
    training.train(recipe, run_dir=tmp_path / name, resume=resume, console=Console(file=stream, width=400))
    return stream.getvalue()


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every run has the tracker in this file."""
    file = tmp_path / "service.jsonl"
    fake = Fake(file=str(file), timeout_s=60.0, finish_s=60.0)
    monkeypatch.setattr(TrackersSection, "trackers", lambda _section: {"fake": fake})
    return file


def without_time(run_dir: Path) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != "seconds" and not name.startswith("perf/")}
        for line in lines
    ]


def test_a_tracker_gets_all_points_then_report_and_results_and_changes_nothing(
    tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(tmp_path)
    monkeypatch.undo()
    run(tmp_path, name="untracked")
    written = without_time(tmp_path / "run")
    assert written == without_time(tmp_path / "untracked")
    weights = [tmp_path / name / "checkpoints/optimizer_step_4/policy.safetensors" for name in ("run", "untracked")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    (begun,), logged, (ended,) = events(tracked, "begin"), events(tracked, "log"), events(tracked, "end")
    assert begun["recipe"]["surrogate"]["name"] == "gipo"
    assert [point["optimizer_steps"] for point in logged] == [1, 2, 3, 4]
    for point, row in zip(logged, written, strict=True):
        assert {name: point["values"][name] for name in row if "/" in name} == {
            name: pytest.approx(value) for name, value in row.items() if "/" in name
        }
        assert point["values"]["clocks/env_steps"] == row["env_steps"]
    assert [event["name"] for event in events(tracked, "attach")] == [
        "recipe.yaml", "manifest.json", "report.html", "eval/optimizer_step_4_toy/results.json",
    ]  # fmt: skip
    assert ended["ending"] == "finished"
    assert f"fake: see {tracked}" in said
    assert not (tmp_path / "untracked" / "report.html").exists()


def test_a_resumed_run_goes_on_in_the_same_tracked_run(tracked: Path, tmp_path: Path) -> None:
    run(tmp_path, "budget.optimizer_steps=2")
    run(tmp_path, resume=True)
    first, second = events(tracked, "begin")
    assert first["earlier"] is None
    assert second["earlier"] is not None
    assert [point["optimizer_steps"] for point in events(tracked, "log")] == [1, 2, 3, 4]


def test_a_resume_that_trains_nothing_tells_trackers_the_recipe_that_trained_the_run(
    tracked: Path, tmp_path: Path
) -> None:
    run(tmp_path)
    run(tmp_path, "surrogate.name=ppo", "budget.optimizer_steps=3", resume=True)
    run(tmp_path, "surrogate.name=ppo", "budget.optimizer_steps=5", resume=True)  # trains one more
    assert [event["recipe"]["surrogate"]["name"] for event in events(tracked, "begin")] == ["gipo", "gipo", "ppo"]


def test_a_run_that_fails_is_marked_failed(tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_names: object) -> None:
        raise RunFailureError("no more")

    monkeypatch.setattr(TorchStrategy, "step", fail)
    with pytest.raises(RunFailureError):
        run(tmp_path)
    assert [event["ending"] for event in events(tracked, "end")] == ["failed"]
    assert not events(tracked, "attach")


def test_a_broken_record_of_a_tracked_run_ends_in_one_sentence(tracked: Path, tmp_path: Path) -> None:
    run(tmp_path, "budget.optimizer_steps=2")
    (tmp_path / "run/trackers/fake.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"fake\.json: expected an object with identity and destination"):
        run(tmp_path, resume=True)


def test_the_newest_videos_are_attached(tracked: Path, tmp_path: Path) -> None:
    videos = tmp_path / "run" / "eval" / "x" / "videos"
    videos.mkdir(parents=True)
    for number in range(10):
        (videos / f"{number}.mp4").touch()
        os.utime(videos / f"{number}.mp4", (1000 + number, 1000 + number))
    with Couriers({"fake": Fake(file=str(tracked))}, tmp_path / "run", say=lambda _line: None) as couriers:
        assert couriers.closing_files() == []  # nobody would get them
        couriers.start("toy", {}, resume=True)
        found = [file.name for file in couriers.closing_files()]  # without a report: there are no metrics
        couriers.finish("finished")
    assert found == [f"{number}.mp4" for number in (9, 8, 7, 6, 5, 4, 3, 2)]


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_every_library_that_is_missing_is_told_at_once_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (wandb.Wandb, trackio.Trackio, mlflow.Mlflow):
        monkeypatch.setattr(kind, "packages", ("no-such-package",))
    asked = ["logging.wandb={}", "logging.trackio.project=x", "logging.mlflow={}", "seed=-1"]
    with pytest.raises(RecipeError) as raised:
        load_recipe(find_recipe("toy"), asked, runs_here=True)
    found = {problem.path: problem for problem in raised.value.problems}
    assert found.keys() == {"seed", "logging.wandb", "logging.trackio", "logging.mlflow"}
    assert found["logging.mlflow"].hint == "pip install 'vla-rl[mlflow]'"
    assert found["logging.mlflow"].place == "logging.mlflow={}"
    assert found["logging.trackio"].rule == "needs no-such-package, which is not installed"


def test_a_recipe_that_names_a_missing_library_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb.Wandb, "packages", ("no-such-package",))
    recipe = load_recipe(find_recipe("toy"), ["logging.wandb={}"])
    assert list(recipe.logging.trackers()) == ["wandb"]
    with pytest.raises(RecipeError, match="no-such-package"):
        load_supervised_recipe(find_recipe("libero_sft_tiny"), ["logging.wandb={}"], runs_here=True)


def test_a_folder_named_like_a_library_is_not_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wandb_folder").mkdir()
    monkeypatch.setattr(wandb.Wandb, "packages", ("wandb_folder",))
    assert not wandb.Wandb.is_installed()


def test_no_tracker_is_used_unless_it_is_asked_for() -> None:
    assert load_recipe(find_recipe("toy")).logging.trackers() == {}


@pytest.mark.parametrize("uri", ["https://me:secret@host", "postgresql://me@host/db"])
def test_a_recipe_holds_no_password(uri: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(find_recipe("toy"), [f"logging.mlflow.tracking_uri={uri}"])
    (problem,) = raised.value.problems
    assert problem.path == "logging.mlflow.tracking_uri"
    assert "MLFLOW_TRACKING_PASSWORD" in problem.allowed


def test_videos_of_an_environment_without_cameras_are_refused() -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(find_recipe("toy"), ["evaluation.video=all"])
    assert [(problem.path, problem.found) for problem in raised.value.problems] == [("evaluation.video", "all")]
    assert load_recipe(find_recipe("quickstart"), ["evaluation.video=failures"]).evaluation.video == "failures"


def test_the_evaluations_of_both_stages_film_what_the_recipe_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for module in (training, supervised_evaluations):
        monkeypatch.setattr(module, "evaluate", lambda _policy, options: asked.append(options.video))
    ours = load_recipe(find_recipe("quickstart"), ["evaluation.video=failures"])
    training._closing_evaluation(ours, Path("x"), print)
    theirs = load_supervised_recipe(find_recipe("libero_sft_tiny"), ["evaluation.video=all"])
    plan: Any = SimpleNamespace(recipe=theirs)
    supervised_evaluations.evaluate_policy(plan, Path("x"), Path("y"), 3, print)
    assert asked == ["failures", "all"]


def test_an_encoder_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_rl.recipe.installed._ENCODER", "no-such-package")
    with pytest.raises(RecipeError, match=r"pip install 'vla-rl\[video\]'"):
        load_recipe(find_recipe("quickstart"), ["evaluation.video=all"], runs_here=True)


def test_the_supervised_stage_knows_the_same_trackers() -> None:
    text = "name: x\ndemos: {path: d}\npolicy: {name: openvla_oft, checkpoint: tiny}\nbudget: {optimizer_steps: 1}\n"
    recipe = build_supervised_recipe(text, ["logging.trackio={}", "logging.wandb.mode=offline"])
    assert list(recipe.logging.trackers()) == ["wandb", "trackio"]
