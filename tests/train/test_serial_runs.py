import gc
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from toy_runs import TOY, metrics, run, toy_recipe
from typer.testing import CliRunner

from vla_rl import train as training
from vla_rl.cli.main import app
from vla_rl.envs.toy import ToyEnv
from vla_rl.errors import CellFailureError, RunFailureError, UserError
from vla_rl.evaluation.history import history_of_run
from vla_rl.ipc.mailbox import WeightMailbox
from vla_rl.learner.checkpoint import find_latest
from vla_rl.learner.stepping import StepOutcome, TorchStrategy
from vla_rl.policies.mlp.network import MLPPolicy
from vla_rl.recipe import Recipe
from vla_rl.reporting.metrics_file import Clocks, MetricsWriter
from vla_rl.reporting.report import write_report
from vla_rl.reporting.run_state import read_state
from vla_rl.reporting.run_summary import manifest_warnings
from vla_rl.run.plan import make_training_plan
from vla_rl.run.rollout_stats import RolloutStats
from vla_rl.run.training import TrainingRun


def own_blocks():
    """Shared memory that this process still maps."""
    gc.collect()  # views may be held by cycles
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:vla_rl" in line}


def policy_bytes(run_dir: Path, optimizer_steps: int) -> bytes:
    return (run_dir / "checkpoints" / f"optimizer_step_{optimizer_steps}" / "policy.safetensors").read_bytes()


def test_two_serial_runs_of_one_seed_write_the_same_metrics_and_weights(tmp_path):
    for name in ("first", "second"):
        run(toy_recipe(), tmp_path / name)
    assert len(metrics(tmp_path / "first")) == 6
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")
    assert policy_bytes(tmp_path / "first", 6) == policy_bytes(tmp_path / "second", 6)


def test_another_seed_gives_other_weights(tmp_path):
    run(toy_recipe(), tmp_path / "first")
    run(toy_recipe(seed=1), tmp_path / "second")
    assert policy_bytes(tmp_path / "first", 6) != policy_bytes(tmp_path / "second", 6)


def test_a_run_leaves_its_records_and_no_shared_memory(tmp_path):
    before = own_blocks()
    outcome, _ = run(toy_recipe(), tmp_path / "run")
    for name in ("recipe.yaml", "manifest.json", "metrics.jsonl", "checkpoints/latest"):
        assert (tmp_path / "run" / name).is_file(), name
    assert outcome.checkpoint.name == "optimizer_step_6"
    assert not outcome.interrupted
    assert own_blocks() <= before


def test_the_governor_holds_the_replay_ratio(tmp_path):
    recipe = toy_recipe(budget={"optimizer_steps": 60}, replay={"replay_ratio": 4.0})
    run(recipe, tmp_path / "run")
    first, last = metrics(tmp_path / "run")[0], metrics(tmp_path / "run")[-1]
    consumed = last["replay/ratio"] * last["decisions"] - first["replay/ratio"] * first["decisions"]
    collected = last["decisions"] - first["decisions"]
    # One batch (16 decisions) and the decisions in flight (2) is all that the two sides may differ by.
    assert abs(consumed / 4.0 - collected) <= 16 / 4.0 + 2 + 1


@pytest.mark.parametrize("save_replay", [True, False])
def test_no_resume_lets_a_batch_run_ahead_of_collection(tmp_path, save_replay):
    """One update for each start: what is consumed before an update never exceeds twice what is collected by then."""
    recipes = [
        toy_recipe(budget={"optimizer_steps": steps}, checkpoint={"save_replay": save_replay}) for steps in range(1, 16)
    ]
    for number, recipe in enumerate(recipes):
        run(recipe, tmp_path / "run", resume=number > 0)
    points = metrics(tmp_path / "run")
    assert len(points) == 15
    consumed = [round(point["replay/ratio"] * point["decisions"]) for point in points]
    collected = [point["decisions"] - points[0]["decisions"] for point in points]
    assert all(before <= 2 * since for before, since in zip(consumed, collected[1:], strict=False))
    if save_replay:  # else every start warms up anew; here collection is never further ahead than in one long run
        batch, slots = 16, 2
        ahead = [since - before / 2 for before, since in zip(consumed, collected[1:], strict=False)]
        assert max(ahead) <= batch / 2 + slots


@pytest.mark.parametrize(
    ("account", "allowed"),
    [
        (
            '{"replay_ratio": 2.0, "collected": 10, "consumed": 32}',
            (32 / 2 - 10) + 16 / 2 + 2,
        ),  # owed, a batch, in flight
        (None, 16 / 2 + 2),  # versions before it wrote none
    ],
)
def test_accounts_of_earlier_versions_are_continued(tmp_path, account, allowed):
    recipe = toy_recipe(budget={"optimizer_steps": 3})
    run(recipe, tmp_path / "run")
    newest = find_latest(tmp_path / "run").newest
    assert newest is not None
    file = newest.path / "rank_0" / "governor" / "account.json"
    assert json.loads(file.read_text(encoding="utf-8")).keys() == {"replay_ratio", "collected", "consumed"}
    file.unlink()
    if account is not None:
        file.write_text(account, encoding="utf-8")
    plan = make_training_plan(recipe)
    with TrainingRun(plan, tmp_path / "run", resume_from=newest, rank=0, num_ranks=1) as resumed:
        resumed.start()
        assert resumed.memory.counters.get("allowed_decisions") == allowed


def test_segments_beyond_the_allowed_lag_are_never_consumed(tmp_path):
    recipe = toy_recipe(
        budget={"optimizer_steps": 40},
        replay={"replay_ratio": 8.0, "max_policy_lag": 3},
        rollout={"envs_per_worker": 1},
    )
    run(recipe, tmp_path / "run")
    lags = [point["policy_lag/max"] for point in metrics(tmp_path / "run")]
    assert max(lags) <= 3
    assert max(point["policy_lag/excluded"] for point in metrics(tmp_path / "run")) > 0

    run(toy_recipe(budget={"optimizer_steps": 40}, replay={"replay_ratio": 8.0}), tmp_path / "unbounded")
    assert max(point["policy_lag/max"] for point in metrics(tmp_path / "unbounded")) > 3


def test_a_schedule_ends_with_the_run(tmp_path):
    """From 1 to a fifth over the 6 updates, in equal steps; the last update is one step before the end."""
    optimizer = {"policy_lr": 1.0, "policy_warmup": 0, "schedule": "linear", "final_lr_fraction": 0.2}
    run(toy_recipe(optimizer=optimizer | {"max_grad_norm": 1e-6}), tmp_path / "run")
    rates = [point["learner/policy_lr"] for point in metrics(tmp_path / "run")]
    assert rates == pytest.approx([1.0 - 0.8 * step / 6 for step in range(6)])


def test_weights_are_published_every_so_many_updates(tmp_path):
    run(toy_recipe(learner={"publish_every": 3}), tmp_path / "run")
    assert [point["policy_version"] for point in metrics(tmp_path / "run")] == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("publish_every", [4, 3, 1])
def test_no_two_weights_have_one_version_after_a_stop_between_publishes(tmp_path, monkeypatch, publish_every):
    """Six updates and a version every four: what a resumed run begins with was published under no version yet."""
    published, publish = {}, WeightMailbox.publish

    def remember(mailbox, version, tensors):
        weights = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
        published.setdefault(version, set()).add(weights)
        publish(mailbox, version, tensors)

    monkeypatch.setattr(WeightMailbox, "publish", remember)
    run(toy_recipe(learner={"publish_every": 4}), tmp_path / "run")
    recipe = toy_recipe(learner={"publish_every": publish_every}, budget={"optimizer_steps": 9})
    run(recipe, tmp_path / "run", resume=True)
    assert [len(weights) for weights in published.values()] == [1] * len(published)
    assert list(published) == sorted(published)
    assert metrics(tmp_path / "run")[6]["policy_lag/max"] >= 1  # decisions of the first part are older than these


def test_an_update_that_was_skipped_makes_no_new_policy_version(tmp_path, monkeypatch):
    step, outcomes = TorchStrategy.step, []

    def skip_the_third(strategy, max_grad_norm):
        outcomes.append(max_grad_norm)
        return StepOutcome(applied=False, grad_norm=math.nan) if len(outcomes) == 3 else step(strategy, max_grad_norm)

    monkeypatch.setattr(TorchStrategy, "step", skip_the_third)
    run(toy_recipe(), tmp_path / "run")
    points = metrics(tmp_path / "run")
    assert len(outcomes) == 7
    assert points[-1]["learner/skipped_updates"] == 1
    assert all(point["policy_version"] == point["optimizer_steps"] for point in points)
    run(toy_recipe(budget={"optimizer_steps": 8}), tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run")[-1]["learner/skipped_updates"] == 1  # of the whole run


def test_log_ratios_at_lag_zero_are_told_only_while_the_weights_are_those_that_acted(tmp_path):
    run(toy_recipe(learner={"publish_every": 3}, budget={"optimizer_steps": 12}), tmp_path / "run")
    told = {it["optimizer_steps"]: it.get("ratio/lag0_abs_log_max") for it in metrics(tmp_path / "run")}
    assert {step for step, value in told.items() if value is not None} <= {1, 4, 7, 10}
    assert told[1] < 1e-4
    assert max(value or 0.0 for value in told.values()) < 1e-4


def test_on_policy_data_has_log_ratio_zero(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    first = metrics(tmp_path / "run")[0]
    assert first["policy_lag/max"] == 0
    assert first["ratio/abs_log_p95"] < 1e-4
    assert abs(first["learner/approx_kl"]) < 1e-6


@pytest.mark.parametrize("targets", ["gae", "vtrace"])
def test_the_time_limit_changes_the_targets_and_nothing_of_what_was_collected(tmp_path, targets):
    frozen = {"policy_lr": 0.0, "value_lr": 0.0, "schedule": "constant"}  # so that the same episodes are played
    points, manifests = {}, {}
    for time_limit in ("end", "bootstrap"):
        section = {"name": targets, "discount": 1.0, "time_limit": time_limit}
        recipe = toy_recipe(targets=section, optimizer=frozen, budget={"optimizer_steps": 40})
        run(recipe, tmp_path / time_limit)
        points[time_limit] = metrics(tmp_path / time_limit)
        manifests[time_limit] = json.loads((tmp_path / time_limit / "manifest.json").read_text(encoding="utf-8"))
        assert manifests[time_limit]["recipe"]["targets"]["time_limit"] == time_limit
    for end, bootstrap in zip(points["end"], points["bootstrap"], strict=True):
        same = {name for name in end if name.split("/")[0] in ("rollout", "replay", "policy_lag", "ratio")}
        assert {"rollout/success_rate", "rollout/return", "replay/size"} <= same
        for name in (*same, "episodes", "decisions", "env_steps"):
            assert end[name] == bootstrap[name], name
    assert points["end"][-1]["rollout/success_rate"] < 1.0  # so some episodes did reach the horizon
    assert points["end"][-1]["learner/value_loss"] != points["bootstrap"][-1]["learner/value_loss"]


@pytest.mark.parametrize("targets", ["gae", "vtrace"])
def test_values_of_acting_time_are_another_way_to_learn_from_the_same_experience(tmp_path, targets):
    for values in ("current", "acting"):
        run(toy_recipe(targets={"name": targets, "values": values}), tmp_path / values)
    current, acting = metrics(tmp_path / "current"), metrics(tmp_path / "acting")
    # The first batch was collected by the very weights that it updates, so that both ways have the same targets.
    assert current[0]["policy_lag/max"] == 0
    assert acting[0] == pytest.approx(current[0], rel=1e-4, abs=1e-6)
    assert acting[-1]["learner/value_loss"] != pytest.approx(current[-1]["learner/value_loss"], rel=1e-4)


def test_running_moments_go_on_after_a_resume_and_log_points_tell_where_the_time_went(tmp_path):
    recipe = {"loss": {"advantage_moments": "running"}, "learner": {"micro_batch": 2, "accumulation": 2}}
    run(toy_recipe(**recipe, budget={"optimizer_steps": 3}), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["perf/values_ms"] > 0 for line in lines] == [True, False, False]  # the first has no moments before it
    assert all(line["perf/loss_ms"] > 0 and line["perf/optimizer_ms"] > 0 for line in lines)
    assert lines[0]["ratio/lag0_abs_log_max"] < 1e-4
    run(toy_recipe(**recipe, budget={"optimizer_steps": 5}), tmp_path / "run", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["perf/values_ms"] > 0 for line in lines] == [True, False, False, False, False]


def test_resume_continues_the_clocks_and_keeps_the_experience(tmp_path):
    first, _ = run(toy_recipe(), tmp_path / "run")
    saved = json.loads((first.checkpoint / "state.json").read_text(encoding="utf-8"))["extra"]
    resumed, _ = run(toy_recipe(budget={"optimizer_steps": 9}), tmp_path / "run", resume=True)
    points = metrics(tmp_path / "run")
    assert [point["optimizer_steps"] for point in points] == list(range(1, 10))
    assert [point["policy_version"] for point in points] == list(range(1, 10))
    assert points[6]["decisions"] >= first.clocks.decisions
    assert points[6]["policy_lag/max"] > 0  # decisions of the first part are in the ring
    assert resumed.clocks.optimizer_steps == 9
    assert resumed.clocks.seconds > saved["seconds"] > 0


def test_success_after_a_resume_is_still_that_of_the_recent_episodes(tmp_path):
    """Otherwise one lucky episode after a resume would look like a success rate of 100 %."""
    logging = {"recent_episodes": 1000, "tensorboard": False}
    run(toy_recipe(logging=logging, checkpoint={"every_optimizer_steps": 4}), tmp_path / "run")
    run(toy_recipe(logging=logging, budget={"optimizer_steps": 7}), tmp_path / "run", resume=True)
    before, after = metrics(tmp_path / "run")[-2:]
    new = after["episodes"] - before["episodes"]
    assert 0 < new < before["episodes"] / 2
    # The mean over all episodes of the run: the new ones change it by at most their share.
    successes = [point["rollout/success_rate"] * point["episodes"] for point in (before, after)]
    assert successes == pytest.approx([round(count) for count in successes], abs=1e-6)
    assert 0 <= round(successes[1] - successes[0]) <= new


def test_a_resumed_run_plays_episodes_that_were_not_played_before(tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr(RolloutStats, "add", lambda _, record: played.append(record.job))
    run(toy_recipe(env={"tasks": [0, 1, 2]}), tmp_path / "run")
    first = list(played)
    run(toy_recipe(env={"tasks": [0, 1, 2]}, budget={"optimizer_steps": 12}), tmp_path / "run", resume=True)
    resumed = played[len(first) :]
    assert first
    assert resumed
    assert not set(first) & set(resumed)


@pytest.mark.parametrize("slots", [2, 4])
def test_a_slot_that_was_faster_than_others_repeats_nothing_after_a_resume_either(tmp_path, monkeypatch, slots):
    """Episodes of task 1, which every second slot plays, have one decision; those of task 0 up to four."""
    played, step = [], ToyEnv.step_chunk

    def step_and_end(env, actions):
        result = step(env, actions)
        return replace(result, truncated=not result.terminated) if env.task.task_id == 1 else result

    monkeypatch.setattr(ToyEnv, "step_chunk", step_and_end)
    monkeypatch.setattr(RolloutStats, "add", lambda _, record: played.append(record.job))
    run(toy_recipe(env={"tasks": [0, 1]}), tmp_path / "run")
    first, counts = list(played), Counter(job.task_index for job in played)
    assert counts[1] > 2 * counts[0]
    more = {"env": {"tasks": [0, 1]}, "rollout": {"envs_per_worker": slots}, "budget": {"optimizer_steps": 12}}
    run(toy_recipe(**more), tmp_path / "run", resume=True)
    run(toy_recipe(**more | {"budget": {"optimizer_steps": 18}}), tmp_path / "run", resume=True)
    assert len(played) > 2 * len(first)
    assert len(set(played)) == len(played)


def test_steps_before_a_resume_count_once_however_many_ranks_there_are(tmp_path):
    outcome, _ = run(toy_recipe(), tmp_path / "run")
    newest = find_latest(tmp_path / "run").newest
    with TrainingRun(
        make_training_plan(toy_recipe()), tmp_path / "run", resume_from=newest, rank=0, num_ranks=2
    ) as resumed:
        assert resumed.env_steps_of_all_ranks == outcome.clocks.env_steps
        resumed.memory.counters.add("env_worker_env_steps", 10)
        assert resumed.env_steps_of_all_ranks == outcome.clocks.env_steps + 20


def test_a_run_that_died_before_its_first_checkpoint_begins_anew_on_resume_and_keeps_its_log_points(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    first = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for number in (1, 2):
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        _, printed = run(toy_recipe(seed=number), tmp_path / "run", resume=True)
        assert f"metrics.before_restart_{number}.jsonl" in printed
        assert [point["optimizer_steps"] for point in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "run" / "metrics.before_restart_1.jsonl").read_bytes() == first


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", [b"", b"\x80\xff\x1b[2J\n", b"../elsewhere\n"])
def test_a_latest_that_names_no_checkpoint_is_called_damaged_and_not_repeated(tmp_path, content):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "latest").write_bytes(content)
    assert find_latest(tmp_path).damaged == [f"{folder}/latest: damaged, it names no checkpoint"]


@pytest.mark.parametrize("damage", ["truncated", "removed", "latest alone"])
def test_a_resume_without_a_whole_checkpoint_is_refused_and_everything_is_kept(tmp_path, damage):
    run(toy_recipe(), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    for folder in checkpoints.glob("optimizer_step_*"):
        match damage:
            case "truncated":
                (folder / "policy.safetensors").write_bytes(b"")
            case "removed":
                (folder / "policy.safetensors").unlink()
            case _:
                shutil.rmtree(folder)
    before = contents(tmp_path / "run")
    with pytest.raises(UserError) as refusal:
        run(toy_recipe(budget={"optimizer_steps": 9}), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before
    message = str(refusal.value)
    if damage == "latest alone":
        assert f"{checkpoints}/latest: it names optimizer_step_6, which is not there" in message
    else:
        assert all(f"{checkpoints}/optimizer_step_{steps}: policy.safetensors" in message for steps in (3, 6))

    advice = shlex.split(message.rpartition("vla-rl ")[2])
    assert CliRunner().invoke(app, [*advice, "runtime.device=cpu"]).exit_code == 0
    assert [point["optimizer_steps"] for point in metrics(tmp_path / "run-anew")] == [1, 2, 3, 4, 5, 6]
    assert contents(tmp_path / "run") == before


def test_damaged_checkpoints_push_no_whole_ones_out(tmp_path):
    """The newest is damaged, so the run goes on from the one before: what it writes is what is kept."""
    more = {"every_optimizer_steps": 4, "keep": 1}
    run(toy_recipe(checkpoint=more | {"keep": 2}, budget={"optimizer_steps": 8}), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "optimizer_step_8" / "policy.safetensors").write_bytes(b"")
    outcome, _ = run(toy_recipe(checkpoint=more, budget={"optimizer_steps": 6}), tmp_path / "run", resume=True)
    assert outcome.checkpoint == checkpoints / "optimizer_step_6"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "optimizer_step_6", "optimizer_step_8"]
    assert find_latest(tmp_path / "run").newest.path == checkpoints / "optimizer_step_6"


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


def test_after_a_full_disk_the_advice_is_a_command_that_works(tmp_path, monkeypatch):
    def full(*_, **_named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("vla_rl.run.training.save_ring", full)
        with pytest.raises(RunFailureError, match="No other was written, so what was learned is lost") as failure:
            run(toy_recipe(), tmp_path / "run")
    advice = shlex.split(str(failure.value).rpartition("vla-rl ")[2])
    assert CliRunner().invoke(app, [*advice, "budget.optimizer_steps=3"]).exit_code == 0

    with monkeypatch.context() as disk:
        disk.setattr("vla_rl.run.training.save_ring", full)
        with pytest.raises(RunFailureError, match=r"go on from .*/optimizer_step_3: ") as failure:
            run(toy_recipe(), tmp_path / "run", resume=True)
    advice = shlex.split(str(failure.value).rpartition("vla-rl ")[2])
    assert CliRunner().invoke(app, [*advice, "budget.optimizer_steps=6"]).exit_code == 0
    assert [point["optimizer_steps"] for point in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_resume_without_saved_replay_starts_with_an_empty_ring(tmp_path):
    recipe = toy_recipe(checkpoint={"save_replay": False})
    run(recipe, tmp_path / "run")
    run(toy_recipe(checkpoint={"save_replay": False}, budget={"optimizer_steps": 7}), tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run")[-1]["policy_lag/max"] == 0


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / "optimizer_step_6" / "policy.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    _, printed = run(toy_recipe(), tmp_path / "run", resume=True)
    assert "optimizer_step_6" in printed
    assert [point["optimizer_steps"] for point in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_second_run_is_never_written_over_the_first(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="--resume"):
        run(toy_recipe(), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_ranks_started_by_a_foreign_launcher_write_over_no_run_either(tmp_path, monkeypatch):
    run(toy_recipe(), tmp_path / "run")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--resume"):
        run(toy_recipe(), tmp_path / "run")


def test_a_checkpoint_of_another_architecture_is_refused_before_anything_starts(tmp_path):
    before = own_blocks()
    run(toy_recipe(), tmp_path / "run")
    with pytest.raises(UserError, match="architecture"):
        run(toy_recipe(policy={"hidden_dim": 32}), tmp_path / "run", resume=True)
    assert own_blocks() <= before


def test_a_dry_run_refuses_a_folder_as_the_run_would_and_changes_nothing(tmp_path):
    folder = tmp_path / "run"
    training.dry_run(toy_recipe(), run_dir=folder)
    assert not folder.exists()
    run(toy_recipe(policy={"distribution": "gaussian"}), folder)
    before = contents(folder)
    with pytest.raises(ValueError, match="already holds a run"):
        training.dry_run(toy_recipe(policy={"distribution": "gaussian"}), run_dir=folder)
    training.dry_run(toy_recipe(policy={"distribution": "gaussian"}), run_dir=folder, resume=True)
    for other, fault in (({"hidden_dim": 32}, "architecture"), ({"mean": "tanh"}, r"policy\.mean=linear")):
        recipe = toy_recipe(policy={"distribution": "gaussian", **other})
        with pytest.raises(ValueError, match=fault):
            training.dry_run(recipe, run_dir=folder, resume=True)
    assert contents(folder) == before
    for file in folder.glob("checkpoints/*/policy.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=r"no checkpoint of .* is whole"):
        training.dry_run(toy_recipe(policy={"distribution": "gaussian"}), run_dir=folder, resume=True)


def test_a_ring_that_cannot_hold_two_episodes_per_env_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"replay\.capacity"):
        run(toy_recipe(replay={"capacity": 16}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


def test_the_exact_kl_term_is_reported_and_changes_the_weights(tmp_path):
    run(toy_recipe(), tmp_path / "without")
    run(toy_recipe(loss={"kl_coefficient": 1.0}), tmp_path / "with")
    assert "learner/kl" in metrics(tmp_path / "with")[-1]
    assert policy_bytes(tmp_path / "without", 6) != policy_bytes(tmp_path / "with", 6)


def test_a_full_disk_costs_log_points_and_checkpoints_but_not_the_run(tmp_path, monkeypatch):
    def full(*_, **_named):
        raise OSError(28, "No space left on device")

    before = own_blocks()
    monkeypatch.setattr("vla_rl.reporting.metrics_file.MetricsWriter._append", full)
    outcome, printed = run(toy_recipe(), tmp_path / "run")
    assert outcome.clocks.optimizer_steps == 6
    assert printed.count("log points are lost from optimizer step 1 on") == 1

    monkeypatch.setattr("vla_rl.run.training.save_ring", full)
    with pytest.raises(RunFailureError, match="--resume"):
        run(toy_recipe(), tmp_path / "other")
    assert own_blocks() <= before


def test_a_log_point_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    recipe = toy_recipe()
    run(recipe, tmp_path / "run")
    whole = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with MetricsWriter(tmp_path / "run", tensorboard=False, resume_at=Clocks(optimizer_steps=6)) as writer:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limit[1]))
        try:
            with pytest.raises(OSError, match=r"(space left|too large)"):
                writer.write(Clocks(optimizer_steps=7), {"learner/entropy": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, previous)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o002, 0o664, 0o775), (0o027, 0o640, 0o750)])
def test_everything_that_a_run_writes_has_the_mode_that_the_umask_asks_for(tmp_path, umask, file_mode, folder_mode):
    recipe = toy_recipe(logging={"tensorboard": True}, evaluation={"episodes_per_task": 1})
    before = os.umask(umask)
    try:
        run(recipe, tmp_path / "run")
        write_report([tmp_path / "run"], tmp_path / "run" / "report.html", comparisons=[], studies=[])
    finally:
        os.umask(before)
    written = list((tmp_path / "run").rglob("*"))
    assert len(written) > 20
    modes = {path: path.stat().st_mode & 0o777 for path in written}
    assert {path: mode for path, mode in modes.items() if mode != (folder_mode if path.is_dir() else file_mode)} == {}


def test_a_budget_of_time_counts_the_time_before_a_resume(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    more = {"optimizer_steps": 5000, "minutes": 1e-4}
    outcome, _ = run(toy_recipe(budget=more), tmp_path / "run", resume=True)
    assert outcome.clocks.optimizer_steps == 6  # the time was spent before


def test_a_budget_of_control_steps_ends_the_run(tmp_path):
    outcome, _ = run(toy_recipe(budget={"optimizer_steps": 5000, "env_steps": 200}), tmp_path / "run")
    assert 200 <= outcome.clocks.env_steps < 300


def test_the_replay_ratio_counts_both_sides_from_the_first_start(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    before = metrics(tmp_path / "run")[-1]
    run(toy_recipe(budget={"optimizer_steps": 7}), tmp_path / "run", resume=True)
    after = metrics(tmp_path / "run")[-1]
    consumed = before["replay/ratio"] * before["decisions"]
    assert after["replay/ratio"] * after["decisions"] > consumed


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


def test_a_run_goes_on_with_the_experience_of_the_tasks_that_it_still_has(tmp_path):
    """The prompt of a decision follows from its task's place in the list, so the saved replay must follow the list."""
    run(toy_recipe(env={"name": "toy", "tasks": [0, 1]}), tmp_path / "run")
    recipe = toy_recipe(env={"name": "toy", "tasks": [2, 1]}, budget={"optimizer_steps": 8})
    _, told = run(recipe, tmp_path / "run", resume=True)
    assert re.search(r"left out [1-9][\d,]* decisions of the saved replay: this run does not have their tasks", told)


def test_a_resumed_run_tells_what_trained_its_policy(tmp_path):
    folder, ppo = tmp_path / "run", Recipe.model_validate({**TOY, "surrogate": {"name": "ppo"}})
    more = Recipe.model_validate({**TOY, "surrogate": {"name": "ppo"}, "budget": {"optimizer_steps": 9}})
    run(toy_recipe(), folder)
    files = [folder / "recipe.yaml", folder / "manifest.json"]
    before = [file.read_bytes() for file in files]
    run(ppo, folder, resume=True)  # nothing is left to train
    assert [file.read_bytes() for file in files] == before
    run(more, folder, resume=True)
    found = {
        step: history_of_run(folder, folder / "checkpoints" / f"optimizer_step_{step}", stage="train")
        for step in (6, 9)
    }
    assert {step: history.recipe["surrogate"]["name"] for step, history in found.items()} == {6: "gipo", 9: "ppo"}
    assert found[6].changes == ()
    (change,) = found[9].changes
    assert change.startswith("From optimizer step 7 on: ")
    assert "surrogate.name ppo instead of gipo" in change
    assert change in manifest_warnings(json.loads((folder / "manifest.json").read_text()))
