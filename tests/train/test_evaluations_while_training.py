"""Evaluations while training: what they leave untouched, what follows from them, what survives an interruption."""

import json
import shlex
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from toy_runs import metrics, run, toy_recipe

from vla_rl.errors import CellFailureError, UserError
from vla_rl.evaluation import run_evaluations, while_training
from vla_rl.evaluation.outcome import EvaluationReport
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.evaluation.while_training import EvaluationStoppedError
from vla_rl.learner.checkpoint import CheckpointError
from vla_rl.recipe import build_recipe, find_recipe, load_recipe
from vla_rl.reporting.evaluated_points import EvaluatedPoint, evaluated_points
from vla_rl.reporting.metrics_file import read_metrics
from vla_rl.reporting.run_folder import read_run
from vla_rl.reporting.run_state import read_state
from vla_rl.reporting.run_summary import run_sentences


def evaluated(run_dir: Path) -> list[int]:
    return [point["optimizer_steps"] for point in metrics(run_dir) if "evaluation/success_rate" in point]


def weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / "optimizer_step_6" / "policy.safetensors").read_bytes()


def checkpoints(run_dir: Path) -> set[str]:
    return {path.name for path in (run_dir / "checkpoints").iterdir()}


def every(steps: int, episodes: int = 2) -> dict[str, int]:
    return {"every_optimizer_steps": steps, "episodes_per_task": episodes}


@pytest.fixture
def played(monkeypatch):
    """Evaluations as their number of successes of 20 says, without playing; returns the steps that were evaluated."""
    steps: list[int] = []
    successes: dict[int, int] = {}

    def play(policy, options, *, run_dir, optimizer_steps, stop):
        del policy, options, stop
        steps.append(optimizer_steps)
        count = successes.get(optimizer_steps, 0)
        folder = while_training.folder_of(run_dir, optimizer_steps)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        lines = [
            {
                "suite": "toy",
                "task_id": 0,
                "init_state": state,
                "seed": 0,
                "success": state < count,
                "env_steps": 8,
                "episode_return": 0.0,
                "seconds": 0.1,
                "init_states": "sampled",
            }
            for state in range(20)
        ]
        (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return EvaluatedPoint(optimizer_steps, count / 20, 0.0, 1.0, 20, 0.5), None

    monkeypatch.setattr(run_evaluations, "play_while_training", play)
    return successes, steps


def test_a_serial_run_with_evaluations_trains_to_the_last_bit_as_one_without(tmp_path):
    run(toy_recipe(), tmp_path / "without")
    outcome, told = run(toy_recipe(evaluation=every(2)), tmp_path / "with")
    points = metrics(tmp_path / "with")
    assert [point for point in points if "evaluation/success_rate" not in point] == metrics(tmp_path / "without")
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    generators = Path("checkpoints", "optimizer_step_6", "rank_0", "rng.json")
    assert (tmp_path / "with" / generators).read_bytes() == (tmp_path / "without" / generators).read_bytes()
    assert evaluated(tmp_path / "with") == [2, 4, 6]
    point = points[2]  # after the log points of optimizer steps 1 and 2
    assert point["evaluation/episodes"] == 2
    assert point["evaluation/success_low"] <= point["evaluation/success_rate"] <= point["evaluation/success_high"]
    last = read_metrics(tmp_path / "with" / "metrics.jsonl")[-1]
    assert 0.0 < last["perf/evaluation_fraction"] < 1.0
    assert isinstance(outcome.evaluation, EvaluationReport)  # the last one is also the closing one
    assert "evaluation at optimizer step 2: 0 % of 2 episodes" in told
    assert "evaluated 0 %" in told  # the live view's line
    assert "evaluation at optimizer step 2" in (tmp_path / "with" / "logs" / "learner.log").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "with" / "eval").iterdir()) == ["while_training"]


def test_the_end_of_a_run_is_evaluated_whatever_its_optimizer_step(tmp_path, played):
    run(toy_recipe(evaluation=every(4)), tmp_path / "run")
    assert evaluated(tmp_path / "run") == [4, 6]
    run(toy_recipe(evaluation=every(4), budget={"env_steps": 1}), tmp_path / "short")
    assert len(evaluated(tmp_path / "short")) == 1


def test_an_interrupted_evaluation_is_played_again_and_counts_once(tmp_path, played, monkeypatch):
    _, steps = played
    play = run_evaluations.play_while_training

    def interrupted(policy, options, *, run_dir, optimizer_steps, stop):
        if optimizer_steps == 4:
            raise KeyboardInterrupt
        return play(policy, options, run_dir=run_dir, optimizer_steps=optimizer_steps, stop=stop)

    monkeypatch.setattr(run_evaluations, "play_while_training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(toy_recipe(evaluation=every(2)), tmp_path / "run")
    assert evaluated(tmp_path / "run") == [2]
    monkeypatch.setattr(run_evaluations, "play_while_training", play)
    run(toy_recipe(evaluation=every(2)), tmp_path / "run", resume=True)
    assert evaluated(tmp_path / "run") == [2, 4, 6]
    assert steps == [2, 4, 6]
    outcome, _ = run(toy_recipe(evaluation=every(2)), tmp_path / "run", resume=True)  # nothing is left to do
    assert steps == [2, 4, 6]
    assert outcome.evaluation is None


def test_an_evaluation_of_another_course_of_the_training_is_not_gone_on_with(tmp_path):
    """A killed run left episodes of the same optimizer step, with other weights: they are played anew."""
    run(toy_recipe(evaluation=every(6), seed=1), tmp_path / "other")
    folder = tmp_path / "run" / "eval" / "while_training" / "optimizer_step_6"
    shutil.copytree(tmp_path / "other" / "eval" / "while_training" / "optimizer_step_6", folder)
    run(toy_recipe(evaluation=every(6)), tmp_path / "run")
    assert evaluated(tmp_path / "run") == [6]
    conditions = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert conditions["checkpoint"].startswith(str(tmp_path / "run"))


@pytest.mark.parametrize("error", [CellFailureError("a simulator died"), UserError("no"), OSError("disk full")])
def test_an_evaluation_that_fails_costs_no_training(tmp_path, monkeypatch, error):
    def fail(*_args, **_named):
        raise error

    monkeypatch.setattr(run_evaluations, "play_while_training", fail)
    outcome, told = run(toy_recipe(evaluation=every(3)), tmp_path / "run")
    assert outcome.clocks.optimizer_steps == 6
    assert evaluated(tmp_path / "run") == []
    assert f"warning: no evaluation of optimizer step 3, the training goes on: {error}" in told
    assert told.count("warning: no evaluation of optimizer step 6") == 1


class Copy:
    """Weights on a device."""


def test_an_evaluation_without_room_on_the_device_costs_no_training_and_keeps_no_memory(tmp_path, monkeypatch):
    copies, held = [], []

    def fail(*_args, **_named):
        policy = Copy()
        copies.append(weakref.ref(policy))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.03 GiB")

    monkeypatch.setattr(run_evaluations, "play_while_training", fail)
    monkeypatch.setattr(
        while_training, "free_device_memory", lambda: held.append(sum(copy() is not None for copy in copies))
    )
    outcome, told = run(toy_recipe(evaluation=every(3)), tmp_path / "run")
    assert outcome.clocks.optimizer_steps == 6
    assert evaluated(tmp_path / "run") == []
    assert "optimizer step 3, the training goes on: CUDA out of memory. Tried to allocate 14.03 GiB. The" in told
    assert "evaluation.every_optimizer_steps=null" in told
    assert held == [0, 0]


def test_a_bug_in_an_evaluation_is_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def fail(*_args, **_named):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(run_evaluations, "play_while_training", fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(toy_recipe(evaluation=every(3)), tmp_path / "run")


def test_a_request_to_stop_is_heeded_between_the_episodes_of_an_evaluation(tmp_path):
    outcome, _ = run(toy_recipe(), tmp_path / "run")
    asked = iter([False, False, True])
    with pytest.raises(EvaluationStoppedError):
        while_training.play_while_training(
            outcome.checkpoint,
            while_training.options_of(toy_recipe(evaluation=every(2, episodes=9))),
            run_dir=tmp_path / "run",
            optimizer_steps=6,
            stop=lambda: next(asked),
        )


def test_the_best_checkpoint_is_kept_and_a_point_inside_the_noise_is_not_better(tmp_path, played):
    """13 of 20 against 10: three states differ, mid-p 2 (0.5/8) = 0.125. 16: six differ, mid-p 2 (0.5/64) = 0.016."""
    successes, _ = played
    successes.update({1: 10, 2: 13, 3: 16, 4: 2, 5: 19, 6: 3})
    recipe = {"evaluation": every(1), "checkpoint": {"keep": 1}}
    run(toy_recipe(**recipe | {"checkpoint": {"keep": 1, "keep_best": True}}), tmp_path / "run")
    points = [point for point in metrics(tmp_path / "run") if "evaluation/success_rate" in point]
    assert [point["evaluation/without_gain"] for point in points] == [0, 1, 0, 1, 2, 3]
    assert points[-1]["evaluation/best_success_rate"] == 0.8
    assert (tmp_path / "run" / "checkpoints" / "best").read_text(encoding="utf-8") == "optimizer_step_3\n"
    assert checkpoints(tmp_path / "run") == {"optimizer_step_3", "optimizer_step_6", "best", "latest"}
    assert find_policy(str(tmp_path / "run" / "checkpoints" / "best"), profile="auto").name == "optimizer_step_3"
    assert find_policy(str(tmp_path / "run" / "checkpoints" / "latest"), profile="auto").name == "optimizer_step_6"

    run(toy_recipe(**recipe), tmp_path / "other")
    assert checkpoints(tmp_path / "other") == {"optimizer_step_6", "latest"}


def test_the_best_checkpoint_stays_the_best_over_a_resume(tmp_path, played):
    successes, _ = played
    successes.update({2: 20, 4: 1, 6: 2, 8: 3})
    recipe = {"evaluation": every(2), "checkpoint": {"keep": 1, "keep_best": True}}
    run(toy_recipe(**recipe), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best").unlink()  # as if killed before it was written
    run(toy_recipe(**recipe, budget={"optimizer_steps": 8}), tmp_path / "run", resume=True)
    assert checkpoints(tmp_path / "run") == {"optimizer_step_2", "optimizer_step_8", "best", "latest"}


def test_a_pointer_to_a_checkpoint_that_is_gone_is_refused(tmp_path, played):
    run(toy_recipe(evaluation=every(6), checkpoint={"keep_best": True}), tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best"
    best.write_text("optimizer_step_5\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="it names 'optimizer_step_5', and there is no such checkpoint"):
        find_policy(str(best), profile="auto")


def test_a_run_is_finished_at_its_target(tmp_path, played):
    successes, steps = played
    successes.update({2: 17, 4: 18, 6: 20})
    recipe = {"evaluation": every(2), "budget": {"stop_at_success": 0.9}}
    outcome, told = run(toy_recipe(**recipe), tmp_path / "run")
    assert outcome.clocks.optimizer_steps == 4
    assert not outcome.interrupted
    assert outcome.reason == (
        "the target is reached (budget.stop_at_success 0.9): 90 % of 20 episodes (95 % interval 0 % to 100 %) "
        "succeeded at optimizer step 4"
    )
    assert f"finished: {outcome.reason}" in told
    state = read_state(tmp_path / "run", is_spent=False)
    assert (state.state, state.reason) == ("finished", outcome.reason)
    assert outcome.reason in (tmp_path / "run" / "logs" / "learner.log").read_text(encoding="utf-8")

    sentences = run_sentences(read_run(tmp_path / "run"))
    assert f"It ended before its budget was spent: {outcome.reason}." in sentences
    assert any(
        "evaluated 2 times while training: 85 % at first, 90 % success in the newest, at optimizer step 4" in it
        and "90 % in the best" not in it  # 18 of 20 against 17 is noise: the first stays the best
        for it in sentences
    )

    again, _ = run(toy_recipe(**recipe), tmp_path / "run", resume=True)  # it stays finished
    assert (again.clocks.optimizer_steps, again.reason, steps) == (4, outcome.reason, [2, 4])
    more, _ = run(toy_recipe(evaluation=every(2)), tmp_path / "run", resume=True)  # unless the target is taken away
    assert more.clocks.optimizer_steps == 6


def test_a_run_is_finished_after_evaluations_without_gain(tmp_path, played):
    successes, _ = played
    successes.update({1: 2, 2: 12, 3: 13, 4: 14, 5: 20})
    budget = {"stop_after_evaluations_without_gain": 2}
    outcome, _ = run(toy_recipe(evaluation=every(1), budget=budget), tmp_path / "run")
    assert outcome.clocks.optimizer_steps == 4
    assert outcome.reason.startswith(
        "no gain (budget.stop_after_evaluations_without_gain 2): since optimizer step 2, with 60 % of 20 episodes"
    )


def test_without_shared_episodes_the_intervals_decide(tmp_path):
    def point(steps, low, high):
        return EvaluatedPoint(steps, (low + high) / 2, low, high, 20, 1.0)

    history = while_training.History(tmp_path)
    assert history.add(point(1, 0.2, 0.4))
    assert not history.add(point(2, 0.4, 0.6))
    assert history.add(point(3, 0.41, 0.6))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["evaluation.every_optimizer_steps=2", "evaluation.episodes_per_task=0"], "evaluation.episodes_per_task"),
        (["checkpoint.keep_best=true"], "checkpoint.keep_best"),
        (["budget.stop_at_success=0.5"], "budget.stop_at_success"),
        (["budget.stop_after_evaluations_without_gain=3"], "budget.stop_after_evaluations_without_gain"),
        (["evaluation.init_states=spare"], "evaluation.init_states"),
        (["evaluation.init_states=widened"], "evaluation.init_states"),
    ],
)
def test_what_needs_evaluations_is_refused_without_them(overrides, problem):
    with pytest.raises(UserError, match=problem):
        build_recipe(toy_recipe().dump_yaml(), overrides)


def test_a_run_in_libero_is_evaluated_on_the_states_that_the_recipe_names():
    overrides = ["evaluation.init_states=widened", "seed=3"]
    options = while_training.options_of(load_recipe(find_recipe("libero_tiny_gipo"), overrides))
    assert (options.env.init_states, options.seeds) == ("widened", (3,))


def test_what_cannot_be_evaluated_is_refused_before_the_training(tmp_path):
    recipe = build_recipe(toy_recipe().dump_yaml(), ["evaluation.episodes_per_task=1", "env.tasks=[0]"])
    broken = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"init_states": "spare"})})
    with pytest.raises(UserError, match=r"the run's evaluations: evaluation\.init_states: toy samples"):
        run(broken, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_documented_commands_train_to_the_target_and_evaluate_the_best(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    section = page.partition("## While training")[2]
    lines = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert [line.split()[1] for line in lines] == ["train", "eval"]
    for line in lines:
        command = [sys.executable, "-m", "vla_rl", *shlex.split(line)[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        if "stop_at_success" in line:
            assert "ended early: the target is reached (budget.stop_at_success 0.95)" in done.stdout
    assert len(list((tmp_path / "runs" / "toy-best" / "eval").glob("optimizer_step_*"))) == 1


def test_of_two_evaluations_of_one_optimizer_step_the_newer_one_counts():
    one, other = (EvaluatedPoint(4, rate, 0.0, 1.0, 20, 1.0) for rate in (0.1, 0.2))
    records = [{"optimizer_steps": 4} | point.metrics() for point in (one, other)]
    assert evaluated_points([{"optimizer_steps": 2}, *records]) == [other]
