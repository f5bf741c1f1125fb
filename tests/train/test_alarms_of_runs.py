import json
import math

import pytest
from toy_runs import metrics, run, toy_recipe

from vla_rl.reporting.alarms import AlarmLimits, read_alarms
from vla_rl.run import log

OFF = {
    "success_drop": None,
    "all_fail_episodes": None,
    "all_succeed_episodes": None,
    "entropy_min": None,
    "entropy_max": None,
    "kl_max": None,
    "value_loss_growth": None,
}


def alarms(tmp_path, name, **changes):
    run(toy_recipe(alarms=OFF | changes), tmp_path / name)
    return [alarm.name for alarm in read_alarms(tmp_path / name)]


def test_a_run_tells_an_alarm_in_its_log_its_file_and_on_the_screen_and_learns_the_same(tmp_path):
    _, said = run(toy_recipe(alarms=OFF | {"all_fail_episodes": 8}), tmp_path / "run")
    (alarm,) = read_alarms(tmp_path / "run")
    assert alarm.name == "nothing_succeeds"
    assert f"alarm at optimizer step {alarm.optimizer_step}: none of the last" in said
    assert f"alarm nothing_succeeds: {alarm.sentence}" in (tmp_path / "run" / "logs" / "learner.log").read_text("utf-8")
    run(toy_recipe(alarms=OFF | {"all_fail_episodes": 8}, budget={"optimizer_steps": 8}), tmp_path / "run", resume=True)
    assert read_alarms(tmp_path / "run") == [alarm]
    run(toy_recipe(alarms=OFF, budget={"optimizer_steps": 8}), tmp_path / "silent")
    assert metrics(tmp_path / "silent")[:6] == metrics(tmp_path / "run")[:6]
    assert not (tmp_path / "silent" / "alarms.jsonl").exists()


def test_limits_of_the_recipe_are_those_of_the_run(tmp_path):
    assert alarms(tmp_path, "low", entropy_min=5.0) == ["entropy_low"]
    assert alarms(tmp_path, "kl", kl_max=1e-9) == ["kl_high"]
    assert alarms(tmp_path, "none") == []


def test_limits_that_follow_from_the_actions(monkeypatch, tmp_path):
    """With 8 bins the highest entropy is log 8 = 2.079 nat."""
    made: list[AlarmLimits] = []
    watch = log.Alarms

    def note(limits, before):
        made.append(limits)
        return watch(limits, before)

    monkeypatch.setattr(log, "Alarms", note)
    run(toy_recipe(budget={"optimizer_steps": 1}), tmp_path / "bins")
    custom = {name: number for number, name in enumerate(OFF, start=1) if name != "success_drop"}
    custom |= {"success_drop": 0.5, "explained_variance_min": -9.0}
    changed = toy_recipe(budget={"optimizer_steps": 1}, alarms=custom, logging={"recent_episodes": 7})
    run(changed, tmp_path / "custom")
    assert (made[0].entropy_min, made[0].entropy_max) == (0.01, pytest.approx(0.95 * math.log(8)))
    assert made[1] == AlarmLimits(**custom, recent_episodes=7)
    assert json.loads((tmp_path / "bins" / "manifest.json").read_text("utf-8"))["recipe"]["alarms"]["kl_max"] == 0.5
