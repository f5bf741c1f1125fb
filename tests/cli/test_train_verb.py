"""`vla-rl train`: what it hands to the training, and what it says afterwards."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import vla_rl
from vla_rl.cli.main import app
from vla_rl.recipe import find_recipe, load_recipe


@dataclass
class FakeTraining:
    """Stands in for `vla_rl.train`: notes the call, returns an outcome."""

    interrupted: bool = False
    reason: str = ""
    raised: Exception | None = None
    called: dict[str, Any] | None = None

    def train(self, recipe: object, *, run_dir: Path, resume: bool, console: object, board: object) -> object:
        if self.raised:
            raise self.raised
        self.called = {"recipe": recipe, "run_dir": run_dir, "resume": resume, "console": console}
        clocks = SimpleNamespace(optimizer_steps=7, episodes=5, env_steps=90)
        return SimpleNamespace(
            run_dir=run_dir,
            clocks=clocks,
            checkpoint=run_dir / "checkpoints",
            interrupted=self.interrupted,
            reason=self.reason,
            spent="budget.minutes=3",
            evaluation=None if self.interrupted else "19 of 20 episodes",
        )

    def dry_run(self, recipe: object, *, run_dir: Path, resume: bool) -> object:
        if self.raised:
            raise self.raised
        self.called = {"recipe": recipe, "run_dir": run_dir, "resume": resume}
        return "a report"


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTraining:
    fake = FakeTraining()
    module = ModuleType("vla_rl.train")
    module.train, module.dry_run = fake.train, fake.dry_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vla_rl.train", module)
    monkeypatch.setattr(vla_rl, "train", module, raising=False)
    monkeypatch.chdir(tmp_path)
    return fake


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", *arguments])


def test_recipe_overrides_and_folder_reach_the_training(training: FakeTraining) -> None:
    result = invoke("toy", "surrogate.name=ppo", "--run-dir", "here", "seed=3")
    assert result.exit_code == 0
    assert training.called
    assert training.called["recipe"] == load_recipe(find_recipe("toy"), ["surrogate.name=ppo", "seed=3"])
    assert (training.called["run_dir"], training.called["resume"]) == (Path("here"), False)
    assert "finished after 7 optimizer steps" in result.stdout
    assert "19 of 20 episodes" in result.stdout


def test_a_run_is_named_after_its_recipe(training: FakeTraining) -> None:
    invoke("toy", "name=other")
    assert training.called
    assert training.called["run_dir"] == Path("runs/other")


def test_a_run_says_which_budget_ended_it_unless_something_else_did(training: FakeTraining) -> None:
    told = "budget.minutes=3 is spent"
    assert told in invoke("toy").stdout
    training.reason = "the policy solves what it plays"
    assert told not in invoke("toy").stdout
    training.reason, training.interrupted = "", True
    assert told not in invoke("toy").stdout


@pytest.mark.parametrize("folder", ["runs/toy", "bare", "with a space"])
def test_an_interrupted_run_says_how_to_go_on(training: FakeTraining, folder: str) -> None:
    training.interrupted = True
    result = invoke("toy", "--run-dir", folder)
    assert result.exit_code == 130
    typed = shlex.split(result.stdout.splitlines()[-1].removeprefix("continue with  "))
    Path(folder).mkdir(parents=True)
    (Path(folder) / "recipe.yaml").write_text(load_recipe(find_recipe("toy")).dump_yaml(), encoding="utf-8")
    training.interrupted = False
    again = CliRunner().invoke(app, typed[1:])
    assert (typed[0], again.exit_code, training.called["run_dir"]) == ("vla-rl", 0, Path(folder))


def test_a_run_s_folder_is_enough_to_resume_it(training: FakeTraining) -> None:
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    recipe = load_recipe(find_recipe("toy"), ["seed=9"])
    (folder / "recipe.yaml").write_text(recipe.dump_yaml(), encoding="utf-8")
    assert invoke(str(folder), "--resume").exit_code == 0
    assert training.called
    assert (training.called["recipe"], training.called["run_dir"], training.called["resume"]) == (recipe, folder, True)
    assert invoke(str(folder)).exit_code == 2


def test_a_run_is_resumed_from_another_directory_with_the_files_that_it_began_with(
    training: FakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, folder = Path.cwd(), Path("runs/mine")
    folder.mkdir(parents=True)
    (start / "base").mkdir()
    (start / "assets").mkdir()
    recipe = load_recipe(find_recipe("libero_tiny_gipo"), ["policy.checkpoint=base", "env.assets=assets"])
    (folder / "recipe.yaml").write_text(recipe.dump_yaml(), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps({"directory": str(start)}), encoding="utf-8")
    assert invoke(str(folder), "--resume").exit_code == 0
    assert training.called["recipe"] == recipe
    (start / "other").mkdir()
    monkeypatch.chdir(start / "other")
    assert invoke("../runs/mine", "--resume").exit_code == 0
    assert training.called["recipe"].policy.checkpoint == str(start / "base")
    assert training.called["recipe"].env.assets == str(start / "assets")
    (start / "runs" / "mine" / "manifest.json").unlink()
    result = invoke("../runs/mine", "--resume")
    assert (result.exit_code, "Run the command in that directory" in result.stderr) == (2, True)


def make_run(folder: Path, *, time_limit: str | None) -> None:
    """A folder of a toy run with that `targets.time_limit`; None: the run is older than the field."""
    folder.mkdir(parents=True)
    recipe = load_recipe(find_recipe("toy"), [] if time_limit is None else [f"targets.time_limit={time_limit}"])
    text = recipe.dump_yaml()
    if time_limit is None:
        text = text.replace("  time_limit: end\n", "")
        assert "time_limit" not in text
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("recipe", ["runs/toy", "toy"])
def test_a_resumed_run_that_is_older_than_the_time_limit_bootstraps_on_and_says_so(
    training: FakeTraining, recipe: str
) -> None:
    make_run(Path("runs/toy"), time_limit=None)
    result = invoke(recipe, "--resume")
    assert training.called
    assert training.called["recipe"] == load_recipe(find_recipe("toy"), ["targets.time_limit=bootstrap"])
    [line] = [line for line in result.stdout.splitlines() if "time_limit" in line]
    assert line == "runs/toy continues with targets.time_limit=bootstrap, as it began: it is older than this field"


def test_a_resumed_run_keeps_its_time_limit_whatever_the_recipe_has_become(training: FakeTraining) -> None:
    make_run(Path("runs/toy"), time_limit="bootstrap")
    assert "targets.time_limit=bootstrap, as it began" in invoke("toy", "--resume").stdout
    assert training.called
    assert training.called["recipe"].targets.time_limit == "bootstrap"
    assert "time_limit" not in invoke("runs/toy", "--resume").stdout  # nothing else was asked for
    assert training.called["recipe"].targets.time_limit == "bootstrap"


@pytest.mark.parametrize("time_limit", [None, "bootstrap"])
def test_an_override_changes_the_time_limit_of_a_run_that_goes_on(
    training: FakeTraining, time_limit: str | None
) -> None:
    make_run(Path("runs/toy"), time_limit=time_limit)
    assert "as it began" not in invoke("runs/toy", "targets.time_limit=end", "--resume").stdout
    assert training.called
    assert training.called["recipe"].targets.time_limit == "end"


def test_a_new_run_from_an_older_one_s_recipe_has_the_environment_s_time_limit(training: FakeTraining) -> None:
    make_run(Path("runs/toy"), time_limit=None)
    Path("runs/toy/manifest.json").write_text("{}", encoding="utf-8")
    result = invoke("runs/toy/recipe.yaml", "name=new")
    assert training.called
    assert training.called["recipe"].targets.time_limit == "end"
    assert result.stdout.startswith(
        "runs/toy/recipe.yaml is older than targets.time_limit: its run used bootstrap, this one uses end. "
    )
    advice = result.stdout.partition(" add ")[2].split()[0]
    assert "older" not in invoke("runs/toy/recipe.yaml", "name=new", advice).stdout
    assert training.called["recipe"].targets.time_limit == "bootstrap"


def test_a_new_run_from_a_recipe_with_a_time_limit_says_nothing_of_older_ones(training: FakeTraining) -> None:
    make_run(Path("runs/toy"), time_limit="end")
    Path("runs/toy/manifest.json").write_text("{}", encoding="utf-8")
    assert "older" not in invoke("runs/toy/recipe.yaml", "name=new").stdout
    assert "older" not in invoke("toy").stdout


@pytest.mark.parametrize("folder", ["runs/mien", "runs/empty"])
def test_a_resume_of_a_run_that_is_not_there_names_the_runs_that_are(training: FakeTraining, folder: str) -> None:
    for name in ("mine", "yours", "empty"):
        (Path("runs") / name).mkdir(parents=True)
    for name in ("mine", "yours"):
        (Path("runs") / name / "recipe.yaml").write_text("", encoding="utf-8")
    result = invoke(folder, "--resume")
    assert (result.exit_code, training.called) == (2, None)
    assert result.stderr.startswith(f"error: --resume: {folder} ")
    assert "Runs beside it: runs/mine, runs/yours." in result.stderr


def test_resume_takes_a_recipe_too_and_goes_on_in_its_usual_folder(training: FakeTraining) -> None:
    assert invoke("toy", "--resume").exit_code == 0
    assert training.called
    assert (training.called["run_dir"], training.called["resume"]) == (Path("runs/toy"), True)


def test_a_folder_with_a_recipe_s_name_does_not_hide_it(training: FakeTraining) -> None:
    here = Path("toy")
    here.mkdir()
    (here / "recipe.yaml").write_text(load_recipe(find_recipe("toy"), ["seed=9"]).dump_yaml(), encoding="utf-8")
    assert invoke("toy").exit_code == 0
    assert training.called
    assert (training.called["recipe"], training.called["run_dir"]) == (
        load_recipe(find_recipe("toy")),
        Path("runs/toy"),
    )

    training.called = None
    refused = invoke("toy", "--resume")
    assert (refused.exit_code, training.called) == (2, None)
    assert "no run of it in runs/toy" in refused.stderr
    assert "write ./toy" in refused.stderr
    assert invoke("./toy", "--resume").exit_code == 0
    assert training.called
    assert (training.called["recipe"].seed, training.called["run_dir"]) == (9, here)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/"])
@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_a_name_that_no_file_can_have_is_the_user_s_mistake(
    training: FakeTraining, name: str, options: list[str]
) -> None:
    result = invoke(name, *options)
    assert (result.exit_code, training.called) == (2, None)
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [("mine", [], "./mine"), ("mine", ["--resume"], "./mine"), ("my run", [], "'./my run'")],
)
def test_a_run_s_folder_is_given_by_its_path(training: FakeTraining, name: str, options: list[str], told: str) -> None:
    Path(name).mkdir()
    result = invoke(name, *options)
    assert (result.exit_code, training.called) == (2, None)
    assert f"for the folder of that name here write {told}\n" in result.stderr


def test_a_dry_run_prints_its_report_and_trains_nothing(training: FakeTraining) -> None:
    result = invoke("toy", "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "a report\n")
    assert training.called
    assert training.called["resume"] is False
    assert training.called["run_dir"] == Path("runs/toy")
    assert "console" not in training.called


def test_a_dry_run_of_a_run_to_be_resumed_says_so(training: FakeTraining) -> None:
    """Its recipe may hold values that a new run refuses."""
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(load_recipe(find_recipe("toy")).dump_yaml(), encoding="utf-8")
    assert invoke(str(folder), "--resume", "--dry-run").exit_code == 0
    assert training.called
    assert training.called["resume"] is True


def test_what_a_dry_run_refuses_is_the_user_s_to_fix(training: FakeTraining) -> None:
    training.raised = ValueError("policy.checkpoint: no such folder")
    result = invoke("toy", "--dry-run")
    assert (result.exit_code, result.stderr) == (2, "error: policy.checkpoint: no such folder\n")


def test_a_value_error_in_the_middle_of_a_training_keeps_its_traceback(training: FakeTraining) -> None:
    training.raised = ValueError("shapes differ")
    result = invoke("toy")
    assert result.exit_code == 1
    assert result.exception is training.raised
