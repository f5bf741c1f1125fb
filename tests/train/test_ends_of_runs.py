"""Ends of runs: the budget, the closing evaluation, a failure, and how each is recorded."""

import gc
import json

import pytest
from toy_runs import contents, metrics, run, toy_recipe

from vla_rl import train as training
from vla_rl.errors import CellFailureError, RunFailureError, UserError
from vla_rl.policies.mlp.network import MLPPolicy
from vla_rl.reporting.run_state import read_state
from vla_rl.run.training import TrainingRun


def test_a_finished_run_that_is_resumed_starts_nothing_and_writes_no_checkpoint(tmp_path, monkeypatch):
    first, _ = run(toy_recipe(), tmp_path / "run")
    before = contents(tmp_path / "run" / "checkpoints")
    started = []
    monkeypatch.setattr("vla_rl.workers.serial.SerialCell.start", started.append)
    for budget in ({"optimizer_steps": 6}, {"optimizer_steps": 99, "env_steps": 1}):
        outcome, _ = run(toy_recipe(budget=budget), tmp_path / "run", resume=True)
        assert (outcome.checkpoint, outcome.interrupted) == (first.checkpoint, False)
        assert outcome.clocks.decisions == first.clocks.decisions
    assert started == []
    assert contents(tmp_path / "run" / "checkpoints") == before


def test_log_points_come_after_every_few_updates_and_after_the_last(tmp_path):
    """A list of runs shows the steps of the newest point, and a finished run has made all of them."""
    run(toy_recipe(budget={"optimizer_steps": 7}, logging={"every_optimizer_steps": 5}), tmp_path / "run")
    points = metrics(tmp_path / "run")
    assert [point["optimizer_steps"] for point in points] == [5, 7]
    assert points[0].keys() == points[1].keys()


def test_the_learner_s_policy_is_gone_before_the_closing_evaluation_loads_its_own(tmp_path, monkeypatch):
    """On a GPU there may be room for one."""

    def count(*_args, **_kwargs):
        alive.append(sum(type(one) is MLPPolicy for one in gc.get_objects()))
        raise KeyboardInterrupt

    alive = []
    gc.collect()
    before = sum(type(one) is MLPPolicy for one in gc.get_objects())
    monkeypatch.setattr(training, "evaluate", count)
    outcome, _ = run(toy_recipe(evaluation={"episodes_per_task": 1}), tmp_path / "run")
    assert outcome.interrupted and outcome.checkpoint.is_dir()
    assert alive == [before]


def test_a_run_goes_on_until_its_closing_evaluation_has_ended(tmp_path, monkeypatch):
    def interrupted(*_args):
        assert read_state(folder, is_spent=True).state == "running"
        with pytest.raises(UserError, match="another process is writing to"):
            run(recipe, folder, resume=True)
        raise KeyboardInterrupt

    folder, recipe = tmp_path / "run", toy_recipe(evaluation={"episodes_per_task": 1})
    with monkeypatch.context() as evaluation:
        evaluation.setattr(training, "evaluate", interrupted)
        run(recipe, folder)
    assert read_state(folder, is_spent=True).state == "interrupted"
    run(recipe, folder, resume=True)
    assert read_state(folder, is_spent=True).state == "finished"


def test_the_closing_evaluation_plays_exactly_the_asked_episodes(tmp_path):
    recipe = toy_recipe(env={"tasks": [0, 1]}, evaluation={"episodes_per_task": 3})
    outcome, _ = run(recipe, tmp_path / "run")
    results = json.loads((outcome.evaluation.folder / "results.json").read_text(encoding="utf-8"))
    assert [(task["task_id"], task["episodes"]) for task in results["tasks"]] == [(0, 3), (1, 3)]
    lines = (outcome.evaluation.folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    keys = [(json.loads(line)["task_id"], json.loads(line)["init_state"]) for line in lines]
    assert sorted(keys) == [(task, state) for task in (0, 1) for state in range(3)]


def test_a_budget_of_time_counts_the_time_before_a_resume(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    more = {"optimizer_steps": 5000, "minutes": 1e-4}
    outcome, _ = run(toy_recipe(budget=more), tmp_path / "run", resume=True)
    assert outcome.clocks.optimizer_steps == 6  # the time was spent before


def test_a_budget_of_control_steps_ends_the_run(tmp_path):
    outcome, _ = run(toy_recipe(budget={"optimizer_steps": 5000, "env_steps": 200}), tmp_path / "run")
    assert 200 <= outcome.clocks.env_steps < 300


def test_a_cell_that_fails_leaves_a_checkpoint(tmp_path, monkeypatch):
    def fail_after_two(self):
        if self._server.decisions > 60:
            raise CellFailureError("the cell failed")
        return

    monkeypatch.setattr("vla_rl.workers.serial.SerialCell.raise_if_failed", fail_after_two)
    with pytest.raises(CellFailureError, match="the cell failed"):
        run(toy_recipe(budget={"optimizer_steps": 500}, checkpoint={"every_optimizer_steps": 400}), tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").glob("optimizer_step_*"))


def test_a_run_records_how_it_ended(tmp_path, monkeypatch):
    def state():
        return json.loads((tmp_path / "run" / "state.json").read_text())

    run(toy_recipe(budget={"optimizer_steps": 1}), tmp_path / "run")
    assert (state()["state"], state()["reason"]) == ("finished", "")
    monkeypatch.setattr(TrainingRun, "update", lambda self, batch: _raise(RunFailureError("out of luck")))
    with pytest.raises(RunFailureError):
        run(toy_recipe(budget={"optimizer_steps": 2}), tmp_path / "run", resume=True)
    assert (state()["state"], state()["reason"]) == ("failed", "out of luck")


def test_a_run_names_the_budget_that_ended_it(tmp_path):
    def spent(folder, **budget):
        return run(toy_recipe(budget=budget), tmp_path / folder)[0].spent

    assert spent("steps", optimizer_steps=1) == "budget.optimizer_steps=1"
    assert spent("env", optimizer_steps=50, env_steps=1) == "budget.env_steps=1"
    assert spent("time", optimizer_steps=50, minutes=1e-6) == "budget.minutes=1e-06"


def test_a_smaller_budget_that_ends_a_run_at_once_is_recorded_as_the_reason(tmp_path, monkeypatch):
    def ended(**budget):
        outcome, _ = run(toy_recipe(budget=budget), tmp_path / "run", resume=True)
        state = json.loads((tmp_path / "run" / "state.json").read_text())
        assert (state["state"], state["reason"]) == ("finished", outcome.reason)
        return outcome.clocks.optimizer_steps, outcome.reason

    run(toy_recipe(budget={"optimizer_steps": 3}), tmp_path / "run")
    assert ended(optimizer_steps=2) == (3, "")  # its own budget is spent as well
    with monkeypatch.context() as failing, pytest.raises(RunFailureError):
        failing.setattr(TrainingRun, "update", lambda self, batch: _raise(RunFailureError("out of luck")))
        run(toy_recipe(budget={"optimizer_steps": 6}), tmp_path / "run", resume=True)
    assert ended(optimizer_steps=6, env_steps=1) == (
        3,
        "it was resumed with budget.env_steps=1, which was spent already",
    )
    assert ended(optimizer_steps=6) == (6, "")


def _raise(error):
    raise error
