import json

from vla_rl.reporting.alarms import QUIET_POINTS, Alarm, AlarmLimits, Alarms, AlarmsFile, read_alarms
from vla_rl.reporting.run_folder import read_run
from vla_rl.reporting.run_summary import warnings


def points(name, values, *, episodes=100, **others):
    """Log points with one metric, `episodes` training episodes apart."""
    return [
        {"optimizer_steps": step, "env_steps": 10 * step, "episodes": episodes * step, name: value, **others}
        for step, value in enumerate(values, start=1)
    ]


def told(records, **limits):
    """(optimizer step, name) of each alarm."""
    alarms = Alarms(AlarmLimits(**limits))
    return [(alarm.optimizer_step, alarm.name) for record in records for alarm in alarms.check(record)]


def test_a_success_rate_that_falls_far_below_its_highest_is_told_once():
    records = points("rollout/success_rate", [0.2, 0.8, 0.6, 0.5, 0.45, 0.4])
    assert told(records, success_drop=0.3) == [(4, "success_collapse")]
    assert told(records, success_drop=0.4) == [(6, "success_collapse")]
    assert told(records) == []


def test_a_fall_inside_the_noise_of_few_episodes_is_none():
    """From 0.8 to 0.5 over 10 episodes: three standard errors are 3 sqrt(2 0.65 0.35 / 10) = 0.64."""
    records = points("rollout/success_rate", [0.8, 0.5, 0.1])
    assert told(records, success_drop=0.3, recent_episodes=10) == [(3, "success_collapse")]
    assert told(records, success_drop=0.3, recent_episodes=1000) == []  # and none before there are so many episodes


def test_episodes_in_a_row_without_a_success_are_counted_from_the_last_one():
    records = points("rollout/success_rate", [0.0, 0.0, 0.01, 0.0, 0.0, 0.0])
    assert told(records, all_fail_episodes=200) == [(2, "nothing_succeeds")]
    assert told(records, all_fail_episodes=300) == [(6, "nothing_succeeds")]
    assert told(records, all_fail_episodes=400) == []


def test_episodes_in_a_row_without_a_failure_are_counted_from_the_last_one():
    records = points("rollout/success_rate", [0.5, 1.0, 1.0, 0.99, 1.0, 1.0, 1.0])
    assert told(records, all_succeed_episodes=200) == [(3, "everything_succeeds")]
    assert told(records, all_succeed_episodes=300) == [(7, "everything_succeeds")]
    assert told(records) == []


def test_an_entropy_below_its_limit_is_told():
    records = points("learner/entropy", [1.0, 0.02, 0.009])
    assert told(records, entropy_min=0.01) == [(3, "entropy_low")]
    assert told(records, entropy_min=0.1) == [(2, "entropy_low")]


def test_an_entropy_that_rises_above_its_limit_is_told_and_one_that_begins_there_is_not():
    records = points("learner/entropy", [5.4, 5.3, 2.0, 5.35])
    assert told(records, entropy_max=5.2) == [(4, "entropy_high")]
    assert told(records[:2], entropy_max=5.2) == []


def test_an_untrained_policy_whose_entropy_wavers_around_the_limit_gives_no_alarm():
    records = points("learner/entropy", [3.31, 3.285, 3.293, 3.2, 3.3, 3.19, 3.3])
    assert told(records[:5], entropy_max=3.292) == []
    assert told(records, entropy_max=3.292) == [(7, "entropy_high")]  # it was 0.1 nat below


def test_the_exact_kl_is_what_counts_where_there_is_one():
    assert told(points("learner/approx_kl", [0.1, 0.6]), kl_max=0.5) == [(2, "kl_high")]
    assert told(points("learner/approx_kl", [0.6], **{"learner/kl": 0.4}), kl_max=0.5) == []
    assert told(points("learner/kl", [0.6]), kl_max=0.5) == [(1, "kl_high")]


def test_a_value_loss_explodes_where_it_grows_and_the_values_explain_nothing():
    opening = [4.0, 2.0, *[1.0] * 8]
    explains = {"learner/explained_variance": -1.5}
    assert told(points("learner/value_loss", [*opening, 39.0, 41.0], **explains), value_loss_growth=10.0) == [
        (12, "value_explosion")
    ]
    assert told(points("learner/value_loss", [*opening, 39.0], **explains), value_loss_growth=9.0)
    # A critic that still follows its targets has a larger error because these are larger.
    follows = points("learner/value_loss", [*opening, 41.0], **{"learner/explained_variance": -0.5})
    assert told(follows, value_loss_growth=10.0) == []
    assert told(follows, value_loss_growth=10.0, explained_variance_min=-0.1)


def test_updates_that_were_skipped_are_told_when_they_become_more():
    records = points("learner/skipped_updates", [0, 0, 2, 2, *[2] * 10, 3])
    assert told(records) == [(3, "updates_skipped"), (15, "updates_skipped")]
    (alarm,) = Alarms(AlarmLimits(), before=records[:2]).check(records[2])
    assert alarm.sentence.startswith("2 updates were skipped because a loss or a gradient was not finite")
    assert Alarms(AlarmLimits(), before=records[:4]).check(records[3]) == []


def test_an_alarm_is_told_again_only_after_a_while_without_its_condition():
    """Without the condition for nine log points it goes on, after ten it has ended."""
    high, low = [0.6], [0.1]
    records = points("learner/kl", [*high, *low * (QUIET_POINTS - 1), *high, *low * QUIET_POINTS, *high])
    assert told(records, kl_max=0.5) == [(1, "kl_high"), (2 * QUIET_POINTS + 2, "kl_high")]


def test_a_resumed_run_does_not_repeat_an_alarm():
    records = points("rollout/success_rate", [0.9, 0.9, 0.1, 0.1])
    limits = AlarmLimits(success_drop=0.3)
    whole, resumed = Alarms(limits), Alarms(limits, before=records[:3])
    assert [len(whole.check(record)) for record in records] == [0, 0, 1, 0]
    assert resumed.check(records[3]) == []
    assert [alarm.name for alarm in Alarms(limits, before=records[:2]).check(records[2])] == ["success_collapse"]


def test_the_file_has_one_line_each_and_forgets_what_comes_after_the_resume(tmp_path):
    file = AlarmsFile(tmp_path, resume_at=0)
    assert not (tmp_path / "alarms.jsonl").exists()
    for step in (3, 6):
        file.add(Alarm(step, "kl_high", "the KL is high", 60))
    lines = (tmp_path / "alarms.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "optimizer_step": 3,
        "name": "kl_high",
        "sentence": "the KL is high",
        "env_steps": 60,
    }
    AlarmsFile(tmp_path, resume_at=5).add(Alarm(7, "kl_high", "again", 70))
    assert [alarm.optimizer_step for alarm in read_alarms(tmp_path)] == [3, 7]


def test_the_report_warns_of_alarms_and_passes_over_damaged_lines(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    line = {"optimizer_step": 1200, "name": "kl_high", "sentence": "the KL is high"}
    (tmp_path / "alarms.jsonl").write_text(f"{json.dumps(line)}\n[]\n{{\n", encoding="utf-8")
    assert "Alarm at optimizer step 1,200: the KL is high." in warnings(read_run(tmp_path))
