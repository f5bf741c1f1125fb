"""Whole supervised runs on small demonstrations: what they learn, what they leave, what they refuse."""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from fake_trackers import Fake, events
from safetensors.torch import load_file
from sft_demos import RECIPE, write_demos

from vla_rl.cli import sft as sft_verb
from vla_rl.envs.libero.section import LiberoSection
from vla_rl.errors import RunFailureError, UserError
from vla_rl.evaluation.history import recorded_history
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.learner.checkpoint import CheckpointError
from vla_rl.recipe import RecipeError, build_recipe, build_supervised_recipe
from vla_rl.reporting.run_state import read_state
from vla_rl.run.plan import plan_policy
from vla_rl.run.utilisation import hours_on_cards
from vla_rl.sft import stage, supervised_evaluations
from vla_rl.sft.plan import make_supervised_plan
from vla_rl.sft.stage import dry_run
from vla_rl.sft.supervised_run import SupervisedRun
from vla_rl.sft.written_policy import demonstrated, write_policy
from vla_rl.sharing.card import make_card
from vla_rl.tracking import TrackersSection


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_small_policy_learns_two_demonstrations_by_heart_and_without_a_rate_it_learns_nothing(run) -> None:
    learned = run("budget.optimizer_steps=40", "demos.held_out=0", "augmentation.hue=0")
    still = run("optimizer.policy_lr=0", "optimizer.value_lr=0", "budget.optimizer_steps=6", name="still")
    uniform = math.log(256)
    assert learned.metrics["supervised/cross_entropy"] < 0.6 * uniform
    assert min(row["supervised/cross_entropy"] for row in metrics(still.run_dir)) > 0.9 * uniform
    assert learned.metrics["supervised/accuracy_gripper"] > 0.9


def test_a_tracker_gets_the_log_points_and_goes_on_when_the_run_does(run, monkeypatch, tmp_path) -> None:
    fake = Fake(file=str(tmp_path / "service.jsonl"))
    monkeypatch.setattr(TrackersSection, "trackers", lambda _section: {"fake": fake})
    run("budget.optimizer_steps=1", name="tracked")
    done = run("budget.optimizer_steps=2", name="tracked", resume=True)
    points = events(tmp_path / "service.jsonl", "log")
    assert [point["values"]["supervised/loss"] for point in points] == [
        row["supervised/loss"] for row in metrics(done.run_dir)
    ]
    first, second = events(tmp_path / "service.jsonl", "begin")
    assert first["earlier"] is None
    assert second["earlier"] is not None
    assert [end["ending"] for end in events(tmp_path / "service.jsonl", "end")] == ["finished", "finished"]
    assert "report.html" in {file["name"] for file in events(tmp_path / "service.jsonl", "attach")}


def test_a_written_policy_tells_how_it_was_trained(run) -> None:
    done = run("budget.optimizer_steps=1", name="told")
    history = recorded_history(done.policy)
    assert (history.stage, history.optimizer_steps, history.env_steps) == ("sft", 1, None)
    assert history.recipe["demos"]["path"] == Path(history.recipe["demos"]["path"]).name
    assert "| demonstrations | " in make_card(str(done.run_dir)).text


@pytest.mark.libero
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("KITCHEN_SCENE3_turn_on_the_stove", ["KITCHEN_SCENE3_turn_on_the_stove"]),
        ("turn_on_the_stove", [f"KITCHEN_SCENE{scene}_turn_on_the_stove" for scene in (3, 9)]),
    ],
)
def test_a_task_is_told_from_another_with_its_instruction_by_the_name_of_its_scene(
    name: str, told: list[str], tmp_path: Path
) -> None:
    """Two kitchens of libero_90 have a stove to turn on; where the data name no scene, it may be either."""
    path = write_demos(tmp_path, tasks=(name,), episodes=1)
    plan = make_supervised_plan(build_supervised_recipe(RECIPE.format(path=path), ["demos.suite=libero_90"]))
    training = demonstrated(plan)
    assert training is not None
    infos = LiberoSection(name="libero", suite="libero_90").task_infos()
    assert sorted(info.name for info in infos if info.task_id in training.tasks) == told


def test_a_resumed_run_ends_with_the_same_weights_and_log_points(run) -> None:
    whole = run("demos.held_out=0.3")
    first = run("demos.held_out=0.3", "budget.optimizer_steps=2", name="halves")
    assert first.optimizer_steps == 2
    assert json.loads((first.run_dir / "state.json").read_text())["state"] == "finished"
    again = run("demos.held_out=0.3", "budget.optimizer_steps=4", name="halves", resume=True)
    assert (whole.policy / "model.safetensors").read_bytes() == (again.policy / "model.safetensors").read_bytes()
    left_out = re.compile("perf/|seconds|held_out/")  # the first half measured at its own end, too
    for one, other in zip(metrics(whole.run_dir), metrics(again.run_dir), strict=True):
        assert {k: v for k, v in one.items() if not left_out.match(k)} == {
            k: v for k, v in other.items() if not left_out.match(k)
        }
    held_out = {name for name in whole.metrics if name.startswith("held_out/")}
    assert held_out
    assert all(whole.metrics[name] == again.metrics[name] for name in held_out)


def test_accumulation_changes_nothing_but_rounding(run) -> None:
    whole = run("learner={micro_batch: 4}", "budget.optimizer_steps=2")
    parts = run("learner={micro_batch: 1, accumulation: 4}", "budget.optimizer_steps=2", name="parts")
    for one, other in zip(metrics(whole.run_dir), metrics(parts.run_dir), strict=True):
        assert one["supervised/loss"] == pytest.approx(other["supervised/loss"], rel=1e-5)
        assert one["learner/grad_norm"] == pytest.approx(other["learner/grad_norm"], rel=1e-3)


@pytest.mark.parametrize("cameras", ["[agentview]", "[agentview, wrist]"])
def test_the_policy_is_a_public_checkpoint_that_training_and_evaluation_take(run, cameras: str) -> None:
    done = run(f"demos.cameras={cameras}", "demos.suite=libero_spatial", "loss.value_coefficient=0.5")
    assert not list(done.run_dir.glob("frames*"))
    statistics = json.loads((done.policy / "dataset_statistics.json").read_text())
    assert list(statistics) == ["libero_spatial"]
    assert statistics["libero_spatial"]["num_transitions"] == 4 * 12
    source = find_policy(str(done.run_dir), profile="auto")
    assert source.location == str(done.policy)
    assert source.num_images == cameras.count(",") + 1
    assert source.home == done.run_dir / "eval"
    assert "libero_spatial (tasks: 7), demonstrated initial states" in source.trained_on
    assert plan_policy(source.setup("libero_spatial")).statistics == "libero_spatial"
    recipe = build_recipe(
        f"""
name: rl
env: {{name: libero, suite: libero_spatial, cameras: {cameras}}}
policy: {{name: openvla_oft, checkpoint: {done.policy}}}
surrogate: {{name: gipo}}
budget: {{optimizer_steps: 10}}
"""
    )
    planned = plan_policy(recipe.setup)
    policy = planned.build(device="cpu")
    critic = load_file(done.policy / "value_head.safetensors")
    stored = torch.load(next(done.policy.glob("proprio_projector--*")))
    assert torch.equal(policy.model.proprio_projector.fc1.weight, stored["fc1.weight"])
    assert all(torch.equal(policy.value_head.state_dict()[name], tensor) for name, tensor in critic.items())
    with pytest.raises(CheckpointError, match=r"which only `vla-rl sft .* --resume` reads"):
        find_policy(str(done.checkpoint), profile="auto")


def test_a_run_whose_policy_finds_no_room_says_so_and_writes_it_when_it_is_resumed(run, tmp_path, monkeypatch) -> None:
    def on_a_full_disk(*arguments: Any) -> Path:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the weights are larger
        try:
            return write_policy(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_policy", on_a_full_disk)
        with pytest.raises(RunFailureError, match=r"File too large.*Free space and continue: vla-rl sft .* --resume$"):
            run("budget.optimizer_steps=1")
    assert not list((tmp_path / "run").glob("*policy*"))
    assert run("budget.optimizer_steps=1", resume=True).policy.is_dir()


def test_other_demonstrations_than_at_the_start_are_refused(run, tmp_path: Path) -> None:
    path = write_demos(tmp_path / "mine")
    run(path=path)
    with h5py.File(next(path.glob("pick_up_the_red*")), "a") as file:
        file["data/demo_0/actions"][0, 0] = 0.123
    with pytest.raises(UserError, match="the demonstrations have changed since the run began"):
        run("budget.optimizer_steps=6", path=path, resume=True)


def damaged(path: Path, how: str) -> None:
    file = next(path.glob("pick_up_the_red*"))
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:2000])
        return
    with h5py.File(file, "a") as data:
        demo = data["data/demo_1"]
        if how == "missing":
            del demo["obs/agentview_rgb"]
        elif how == "shape":
            del demo["actions"]
            demo["actions"] = np.zeros((12, 6))
        elif how == "nan":
            demo["actions"][3, 2] = np.nan
        elif how == "size":
            del demo["obs/agentview_rgb"], demo["obs/eye_in_hand_rgb"]
            demo["obs/agentview_rgb"] = demo["obs/eye_in_hand_rgb"] = np.zeros((12, 8, 8, 3), np.uint8)
        elif how == "convention":
            demo["actions"][:, 6] = 0.0
            demo["actions"][5:, 6] = 1.0


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("truncated", "cannot be opened as HDF5"),
        ("missing", "obs/agentview_rgb: is missing"),
        ("shape", "wrong shape"),
        ("nan", "must hold finite numbers"),
        ("size", "all pictures of a data set have one size"),
        ("convention", "the gripper commands are not 'signed'"),
    ],
)
def test_bad_data_are_one_error_that_names_the_file_before_anything_is_written(
    run, tmp_path: Path, how: str, told: str
) -> None:
    path = write_demos(tmp_path / "bad")
    damaged(path, how)
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        run(path=path)
    assert "pick_up_the_red_bowl_demo.hdf5" in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_with_an_l1_head_is_refused(run, tmp_path: Path) -> None:
    done = run()
    folder = tmp_path / "l1"
    shutil.copytree(done.policy, folder)
    torch.save({}, folder / f"action_head--{done.optimizer_steps}_checkpoint.pt")
    with pytest.raises(UserError, match="its trained head is an L1 regression"):
        run(f"policy.checkpoint={folder}", "policy.image_size=null", name="other")


def test_rules_of_a_recipe_are_told_all_at_once(demos: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        build_supervised_recipe(
            RECIPE.format(path=demos),
            ["evaluation.episodes_per_task=1", "policy.statistics=x", "demos.cameras=[wrist]", "replay.capacity=4"],
        )
    assert {problem.path for problem in raised.value.problems} >= {"policy.statistics", "demos.cameras", "replay"}
    with pytest.raises(RecipeError, match=r"policy\.name: demonstrations show pictures"):
        build_supervised_recipe(RECIPE.format(path=demos), ["policy={name: mlp}"])
    with pytest.raises(RecipeError, match=r"evaluation\.episodes_per_task: an evaluation plays tasks of a suite"):
        build_supervised_recipe(RECIPE.format(path=demos), ["evaluation.episodes_per_task=1"])
    with pytest.raises(RecipeError, match=r"episodes_per_task: evaluations while training play episodes"):
        build_supervised_recipe(RECIPE.format(path=demos), ["evaluation.every_optimizer_steps=500"])


def test_crops_in_training_need_a_policy_that_crops_when_it_acts(demos: Path) -> None:
    with pytest.raises(ValueError, match=r"augmentation\.crop is 0\.9"):
        make_supervised_plan(build_supervised_recipe(RECIPE.format(path=demos), ["policy.profile=rlinf"]))
    make_supervised_plan(
        build_supervised_recipe(RECIPE.format(path=demos), ["policy.profile=rlinf", "augmentation.crop=1"])
    )


@pytest.mark.libero
@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("evaluation.tasks=[99]", r"evaluation\.tasks: libero_object does not have these tasks"),
        ("evaluation.init_states=spare", r"evaluation\.init_states: libero_object has no spare ones"),
        ("demos.held_out=0", r"demos\.suite: libero_object has none of the tasks"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_training(
    run, demos: Path, tmp_path: Path, override: str, told: str
) -> None:
    asked = ("demos.suite=libero_object", "evaluation.episodes_per_task=1", override)
    with pytest.raises(UserError, match=told) as refused:
        run(*asked)
    assert "--" not in str(refused.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=told):
        dry_run(build_supervised_recipe(RECIPE.format(path=demos), asked))


@pytest.mark.libero
def test_a_suite_without_the_demonstrated_tasks_is_refused_without_evaluations_too(
    run, demos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"demos\.suite: libero_object has none .*, or set demos\.suite=null$"):
        run("demos.suite=libero_object")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"demos\.suite: libero_object has none"):
        dry_run(build_supervised_recipe(RECIPE.format(path=demos), ["demos.suite=libero_object"]))


@pytest.mark.libero
def test_a_run_is_resumed_without_a_suite_but_not_with_one_without_its_tasks(run) -> None:
    run("demos.suite=libero_spatial", "budget.optimizer_steps=1")
    more = "budget.optimizer_steps=2"
    with pytest.raises(UserError, match=r"demos\.suite: libero_object has none .*, or set demos\.suite=null$"):
        run("demos.suite=libero_object", more, resume=True)
    assert run("demos.suite=null", more, resume=True).optimizer_steps == 2


@pytest.mark.libero
def test_a_run_whose_evaluation_is_possible_passes_the_check(demos: Path) -> None:
    asked = ("demos.suite=libero_spatial", "evaluation.episodes_per_task=1", "demos.cameras=[agentview, wrist]")
    assert dry_run(build_supervised_recipe(RECIPE.format(path=demos), asked))


def test_a_dry_run_tells_data_and_sizes_and_writes_nothing(demos: Path, tmp_path: Path) -> None:
    report = str(dry_run(build_supervised_recipe(RECIPE.format(path=demos))))
    assert "4, 48 rows" in report
    assert "20 to train on, 0 held out" in report  # 4 episodes with 12 - 7 starts each
    assert "4 optimizer steps, 0.8 epochs" in report
    assert "time                   not estimated: arithmetic is not what bounds a policy this small" in report
    assert not list(tmp_path.iterdir())


def test_one_demonstration_of_each_task_is_trained_on_and_none_held_out(run, tmp_path: Path) -> None:
    one_each = write_demos(tmp_path / "one", episodes=1)
    recipe = build_supervised_recipe(RECIPE.format(path=one_each), ["demos.held_out=0.05"])
    report = str(dry_run(recipe))
    assert "10 to train on, 0 held out; held-out episodes: 0 of the 1 that demos.held_out asks for" in report
    done = run("demos.held_out=0.05", "budget.optimizer_steps=1", path=one_each)
    assert not done.interrupted
    assert not [name for name in done.metrics if name.startswith("held_out")]


def test_hours_are_arithmetic_over_an_assumed_share_of_a_card_s_peak() -> None:
    """40 % of 989 and of 165 TFLOP/s; twice the cards take half the time."""
    an_hour_of_an_h100 = 3600 * 0.4 * 989e12
    told = hours_on_cards(an_hour_of_an_h100, num_cards=1)
    assert told.startswith("5.99 h on 1 x RTX 4090 (66 TFLOP/s each), 1 h on 1 x H100 (396 TFLOP/s each)")
    assert "assumed, not measured" in told
    assert "0.5 h on 2 x H100" in hours_on_cards(an_hour_of_an_h100, num_cards=2)


def test_a_dry_run_of_the_7b_network_tells_hours_and_counts_the_second_forward_pass(demos: Path) -> None:
    """A forward pass takes 4.9 TFLOP, forward and backward 9.4: checkpointing makes 14.3 / 9.4 = 1.52 of it."""
    hours = []
    for checkpointing in ("false", "true"):
        policy = f"policy={{name: openvla_oft, checkpoint: random-7b, gradient_checkpointing: {checkpointing}}}"
        recipe = build_supervised_recipe(
            RECIPE.format(path=demos), [policy, "demos.suite=libero_spatial", "budget.optimizer_steps=20000"]
        )
        found = re.search(r"([\d.]+) h on 1 x H100", str(dry_run(recipe)))
        assert found
        hours.append(float(found[1]))
    assert hours[0] == pytest.approx(20_000 * 4 * 9.4e12 / (0.4 * 989e12) / 3600, rel=0.03)
    assert hours[1] / hours[0] == pytest.approx(1.52, abs=0.02)


def test_a_run_does_not_go_on_in_another_random_network(run, demos):
    adapters = ("policy.train_backbone=false", "policy.lora={rank: 2}", "budget.optimizer_steps=1")
    run_dir = run(*adapters, "seed=5").run_dir
    refused = r"seed: trained with 5, found 6.*Continue with seed=5"
    with pytest.raises(UserError, match=refused):
        run(*adapters, "seed=6", resume=True)
    dry = partial(dry_run, run_dir=run_dir, resume=True)
    with pytest.raises(ValueError, match=refused):
        dry(build_supervised_recipe(RECIPE.format(path=demos), [*adapters, "seed=6"]))
    dry(build_supervised_recipe(RECIPE.format(path=demos), [*adapters, "seed=5"]))


def test_a_smaller_budget_that_ends_a_run_at_once_is_recorded_as_the_reason(run, tmp_path, monkeypatch) -> None:
    def failed(_run: SupervisedRun) -> None:
        raise RunFailureError("out of luck")

    run("budget.optimizer_steps=2")
    assert run("budget.optimizer_steps=1", resume=True).reason == ""  # its own budget is spent as well
    with monkeypatch.context() as failing, pytest.raises(RunFailureError):
        failing.setattr(SupervisedRun, "update", failed)
        run("budget.optimizer_steps=6", resume=True)
    ended = run("budget.optimizer_steps=1", resume=True)
    assert (ended.optimizer_steps, ended.reason) == (
        2,
        "it was resumed with budget.optimizer_steps=1, which was spent already",
    )
    state = read_state(tmp_path / "run", is_spent=True)
    assert (state.state, state.reason) == ("finished", ended.reason)
    assert f"ended early: {ended.reason}\n" in sft_verb._summary(ended)


def test_a_run_goes_on_until_its_closing_evaluation_has_ended(run, tmp_path, monkeypatch) -> None:
    def interrupted(*_args: object) -> None:
        states.append(read_state(tmp_path / "run", is_spent=True).state)
        raise KeyboardInterrupt

    states: list[str] = []
    monkeypatch.setattr(supervised_evaluations, "evaluate", interrupted)
    evaluation = ("demos.suite=libero_spatial", "evaluation={episodes_per_task: 1, tasks: [7], horizon: 8}")
    assert run(*evaluation, "budget.optimizer_steps=1").interrupted
    assert [*states, read_state(tmp_path / "run", is_spent=True).state] == ["running", "interrupted"]
