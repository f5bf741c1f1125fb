"""Whole runs with groups in place of a critic, in one process."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file
from toy_runs import assert_pure, groups_in_ring, metrics, run, toy_recipe
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.credit import Group
from vla_rl.errors import NoSignalError
from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.replay.group_sampler import Outcome
from vla_rl.replay.ratio_control import UNLIMITED
from vla_rl.run.group_signal import no_signal
from vla_rl.run.plan import make_training_plan
from vla_rl.run.training import TrainingRun

SIZE = 4


def group_recipe(**sections):
    """Groups of 4 on two tasks, played by two slots in two turns; an update takes two groups of episodes whole."""
    defaults = {
        "env": {"tasks": [0, 1]},
        "targets": {"name": "group", "size": SIZE, "keep": None, "uses": 1},
        "replay": {"capacity": 4096, "replay_ratio": 1.0},
        "learner": {"micro_batch": 8},
    }
    for name, changes in sections.items():
        defaults[name] = {**defaults.get(name, {}), **changes}
    return toy_recipe(**defaults)


def weights_of(run_dir, optimizer_steps):
    return load_file(run_dir / "checkpoints" / f"optimizer_step_{optimizer_steps}" / "policy.safetensors")


def test_the_members_of_a_group_have_one_start_and_no_critic_is_anywhere(tmp_path):
    run(group_recipe(evaluation={"episodes_per_task": 1}), tmp_path / "run")
    groups = groups_in_ring(tmp_path / "run")
    assert_pure(groups, size=SIZE, teams=1)
    assert len(groups) >= 12  # two per update
    assert {task for group in groups.values() for task in group.tasks} == {0, 1}
    assert not [name for name in weights_of(tmp_path / "run", 6) if "value" in name]
    last = metrics(tmp_path / "run")[-1]
    assert not [name for name in last if "value" in name or "explained" in name]
    assert last["groups/kept"] == 1.0
    assert last["groups/episodes_per_useful"] == SIZE
    assert last["replay/ratio"] <= 1.0
    assert list((tmp_path / "run" / "eval").iterdir())


def test_a_resumed_run_completes_the_groups_that_were_cut_short_and_uses_none_again(tmp_path):
    cell = {  # three teams of one slot, with groups of their own; the lengths of episodes differ
        "rollout": {"envs_per_worker": 3, "max_batch": 3},
        "env": {"horizon": 40},
        "replay": {"segment_length": 20},
    }
    run(group_recipe(budget={"optimizer_steps": 2}, **cell), tmp_path / "run")
    before = groups_in_ring(tmp_path / "run")
    cut = {name for name, group in before.items() if group.episodes < SIZE}
    assert cut
    run(group_recipe(budget={"optimizer_steps": 8}, **cell), tmp_path / "run", resume=True)
    after = groups_in_ring(tmp_path / "run")
    assert_pure(after, size=SIZE, teams=3)
    assert all(after[name].episodes == SIZE and after[name].starts == before[name].starts for name in cut)
    assert metrics(tmp_path / "run")[-1]["replay/ratio"] <= 1.0
    assert sum(group.episodes == SIZE for group in after.values()) >= 2 * 8  # two of its own for each update


def test_log_probabilities_are_those_of_the_temperature_that_sampled(tmp_path):
    for temperature in (1.0, 1.6):
        run(group_recipe(rollout={"temperature": temperature}), tmp_path / str(temperature))
    cold, hot = metrics(tmp_path / "1.0"), metrics(tmp_path / "1.6")
    assert max(point.get("ratio/lag0_abs_log_max", 0.0) for point in hot) < 1e-5
    assert hot[0]["learner/entropy"] > cold[0]["learner/entropy"]


def test_oversampling_plays_more_episodes_than_it_learns_from(tmp_path):
    recipe = group_recipe(
        targets={"size": 2, "keep": [0.1, 0.9], "oversample": "balanced", "candidates": 4}, learner={"micro_batch": 2},
        replay={"segment_length": 16}, env={"horizon": 32, "tasks": [0]}, budget={"optimizer_steps": 3},
    )  # fmt: skip
    run(recipe, tmp_path / "run")
    assert_pure(groups_in_ring(tmp_path / "run"), size=4, teams=1)
    assert all(point["groups/episodes_per_useful"] >= 4 for point in metrics(tmp_path / "run"))


def test_over_replay_groups_are_used_until_they_leave_the_ring(tmp_path):
    recipe = group_recipe(
        targets={"uses": None}, replay={"replay_ratio": 4.0, "capacity": 256}, budget={"optimizer_steps": 30}
    )
    run(recipe, tmp_path / "run")
    last = metrics(tmp_path / "run")[-1]
    assert last["replay/ratio"] > 2.5
    assert last["policy_lag/max"] > 4


def without_signal(*, keep, horizon, max_rejected=5, **sections):
    """Groups of four of which none is kept: with a long horizon all succeed, with a short one none does."""
    return group_recipe(
        targets={"keep": keep, "max_rejected": max_rejected}, env={"horizon": horizon, "tasks": [0]},
        replay={"segment_length": 1 if horizon == 1 else 1000, "capacity": 32_768}, **sections,
    )  # fmt: skip


def end_of(run_dir):
    state = json.loads((run_dir / "state.json").read_text(encoding="utf-8"))
    return state["state"], state["reason"]


def test_a_run_whose_groups_all_fail_is_an_error_that_says_so_and_leaves_a_checkpoint(tmp_path):
    with pytest.raises(
        NoSignalError,
        match=r"6 groups were left out.* 0 because all .*The ring holds 0 of the 2 groups.*does not solve",
    ):
        run(without_signal(keep=[0.9, 0.95], horizon=1), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "optimizer_step_0").is_dir()
    assert end_of(tmp_path / "run")[0] == "failed"


def test_a_run_whose_groups_all_succeed_ends_well_and_says_why(tmp_path):
    recipe = without_signal(keep=[2.0, 3.0], horizon=2000, evaluation={"episodes_per_task": 1})
    outcome, _ = run(recipe, tmp_path / "run")
    assert outcome is not None
    said = "nothing left to learn from: 6 groups were left out since the last batch (targets.max_rejected), 6 because"
    assert outcome.reason.startswith(said)
    assert "solves what it plays" in outcome.reason
    assert not outcome.interrupted
    assert outcome.evaluation is not None  # like at the end of the budget
    assert outcome.checkpoint.is_dir()
    assert end_of(tmp_path / "run") == ("finished", outcome.reason)


def test_the_command_line_calls_it_a_success(tmp_path):
    recipe = tmp_path / "solved.yaml"
    recipe.write_text(without_signal(keep=[2.0, 3.0], horizon=2000).dump_yaml(), encoding="utf-8")
    done = CliRunner().invoke(app, ["train", str(recipe), "--run-dir", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "finished after 0 optimizer steps" in done.output
    assert "ended early: nothing left to learn from" in done.output


WARM_UP = 10  # groups


def judging(monkeypatch, is_kept):
    """Let groups be kept or left out by the number of their judgement, from 0; returns a recipe.

    Episodes have one decision, an update takes two groups, and the run begins to learn after `WARM_UP` groups.
    """
    numbers = itertools.count()
    monkeypatch.setattr(Group, "choose", lambda _, scores: np.arange(len(scores)) if is_kept(next(numbers)) else None)
    return group_recipe(
        targets={"max_rejected": 5}, env={"horizon": 1, "tasks": [0]},
        replay={"segment_length": 1, "min_decisions": WARM_UP * SIZE},
    )  # fmt: skip


def test_a_run_whose_groups_are_all_left_out_after_an_update_ends_as_soon_as_without_one(monkeypatch, tmp_path):
    """Two slots hold fewer decisions in flight than an update takes, so the governor allows no batch ever again."""
    plan = make_training_plan(judging(monkeypatch, lambda number: number < WARM_UP))
    polls = itertools.count()
    with TrainingRun(plan, tmp_path, resume_from=None, rank=0, num_ranks=1) as training:
        training.start()
        batch = training.wait_for_batch(lambda: False)
        assert batch is not None
        training.update(batch)
        with pytest.raises(NoSignalError, match=r"6 groups were left out .*The ring holds 8 more, but"):
            training.wait_for_batch(lambda: next(polls) > 1000)


@pytest.mark.parametrize(
    "is_kept",
    [
        lambda number: number < WARM_UP or number % 3 == 0,  # four are left out for each update
        lambda number: number >= WARM_UP - 2,
    ],
    ids=["between updates", "in the warm-up"],
)
def test_a_run_goes_on_while_no_more_groups_than_allowed_are_left_out_before_an_update(monkeypatch, tmp_path, is_kept):
    outcome, _ = run(judging(monkeypatch, is_kept), tmp_path / "run")
    assert outcome.clocks.optimizer_steps == 6
    assert not outcome.reason


@pytest.mark.parametrize(
    ("succeeded", "failed", "mixed", "is_solved", "said"),
    [
        (9, 0, 1, True, "solves what it plays"),
        (8, 0, 2, False, "solves some of what it plays, and not the rest"),
        (5, 4, 1, False, "solves some of what it plays, and not the rest"),
        (9, 1, 0, True, "solves what it plays"),
        (4, 6, 0, False, "does not solve what it plays"),
        (1, 2, 7, False, "Widen targets.keep"),
    ],
)
def test_a_run_is_solved_if_nine_in_ten_of_the_groups_that_were_left_out_succeeded(
    succeeded, failed, mixed, is_solved, said
):
    groups = [*([(True, False)] * succeeded), *([(False, True)] * failed), *([(False, False)] * mixed)]
    outcomes = [Outcome(False, *ended) for ended in groups]
    solved, sentence = no_signal(outcomes, usable=1, needs=2)
    assert solved == is_solved
    assert said in sentence
    assert "The ring holds 1 of the 2 groups" in sentence


def train_on_two_ranks(recipe, tmp_path):
    """`vla-rl train` in processes of its own; returns what it printed."""
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.dump_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "vla_rl", "train", str(file), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TWO_RANKS = {"learner": {"strategy": "ddp", "num_ranks": 2}, "runtime": {"mode": "async"}}


@pytest.mark.slow
def test_every_rank_plays_and_learns_from_whole_groups_of_its_own(tmp_path):
    train_on_two_ranks(group_recipe(**TWO_RANKS, budget={"optimizer_steps": 3}), tmp_path)
    first, second = (groups_in_ring(tmp_path / "run", rank=rank) for rank in (0, 1))
    for groups in (first, second):
        assert_pure(groups, size=SIZE, teams=1)
        assert sum(group.episodes == SIZE for group in groups.values()) >= 2 * 3  # two of its own for each update
    assert not first.keys() & second.keys()
    assert not {group.starts for group in first.values()} & {group.starts for group in second.values()}
    assert {task for groups in (first, second) for group in groups.values() for task in group.tasks} == {0, 1}
    last = metrics(tmp_path / "run")[-1]
    assert last["groups/kept"] == 1.0
    assert last["groups/episodes_per_useful"] == SIZE
    assert last["episodes"] >= 2 * 3 * 2 * SIZE  # of both ranks


@pytest.mark.slow
def test_two_ranks_that_have_nothing_left_to_learn_from_end_well_together(tmp_path):
    recipe = without_signal(keep=[2.0, 3.0], horizon=2000, max_rejected=1, **TWO_RANKS)
    printed = train_on_two_ranks(recipe, tmp_path)
    assert "ended early: nothing left to learn from" in printed or "ended early: another rank has nothing" in printed
    assert end_of(tmp_path / "run")[0] == "finished"


@pytest.mark.slow
def test_groups_alone_teach_the_toy_to_reach_the_goal(tmp_path):
    serial = ["runtime.mode=serial", "runtime.device=cpu", "logging.tensorboard=false", "budget.minutes=null"]
    run(load_recipe(find_recipe("toy_grpo"), [*serial, "evaluation.episodes_per_task=0"]), tmp_path / "run")
    points = [point["rollout/success_rate"] for point in metrics(tmp_path / "run") if "rollout/success_rate" in point]
    assert points[0] < 0.3
    assert points[-1] > 0.7


def test_collection_is_limited_again_before_the_update_that_it_made_possible(tmp_path):
    """While no group is whole nothing limits collection; a rank that then waits for others must not go on like that."""
    plan = make_training_plan(group_recipe(replay={"min_decisions": 1}))
    with TrainingRun(plan, tmp_path, resume_from=None, rank=0, num_ranks=1) as training:
        training.start()
        assert training.wait_for_batch(lambda: False) is not None
        assert training.memory.counters.get("allowed_decisions") < UNLIMITED
