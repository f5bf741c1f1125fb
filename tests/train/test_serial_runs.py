"""Runs in one process: what they learn from, what they publish, and that a seed repeats them."""

import json
import math
from pathlib import Path

import pytest
from toy_runs import metrics, own_blocks, run, toy_recipe

from vla_rl.errors import UserError
from vla_rl.learner.stepping import StepOutcome, TorchStrategy


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


def test_a_ring_that_cannot_hold_two_episodes_per_env_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"replay\.capacity"):
        run(toy_recipe(replay={"capacity": 16}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_exact_kl_term_is_reported_and_changes_the_weights(tmp_path):
    run(toy_recipe(), tmp_path / "without")
    run(toy_recipe(loss={"kl_coefficient": 1.0}), tmp_path / "with")
    assert "learner/kl" in metrics(tmp_path / "with")[-1]
    assert policy_bytes(tmp_path / "without", 6) != policy_bytes(tmp_path / "with", 6)
