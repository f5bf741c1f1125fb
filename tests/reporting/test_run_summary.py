import json
from typing import Any

import pytest

from vla_rl.reporting.run_folder import read_run
from vla_rl.reporting.run_summary import run_sentences, warnings
from vla_rl.reporting.series import closing_mean, last, nonfinite_counts, opening_mean, series

RECORDS: list[dict[str, Any]] = [
    {"env_steps": 0, "optimizer_steps": 0, "a": 100.0},
    {"env_steps": 50, "optimizer_steps": 1, "a": None, "nonfinite": ["a"]},
    {"env_steps": 79, "optimizer_steps": 2, "a": 50.0},
    {"env_steps": 80, "optimizer_steps": 3, "a": 1.0},
    {"env_steps": 100, "optimizer_steps": 4, "a": 3.0},
    {"env_steps": 100, "optimizer_steps": 5},
]


def test_a_series_leaves_out_points_without_a_value():
    assert series(RECORDS, "a", over="optimizer_steps") == ([0, 2, 3, 4], [100, 50, 1, 3])


def test_the_closing_window_is_the_last_fifth_of_env_steps():
    assert closing_mean(RECORDS, "a") == 2.0  # of 1 and 3: from env step 80 on
    assert closing_mean(RECORDS, "b") is None
    assert closing_mean([], "a") is None


def test_the_sample_size_of_old_samples_is_absent_where_none_was_old():
    records = [
        {"env_steps": 90, "policy_lag/old_fraction": 0.0, "utilization/ess_old": 0.0},
        {"env_steps": 95, "policy_lag/old_fraction": 0.5, "utilization/ess_old": 0.0},  # all of them without a gradient
        {"env_steps": 100, "policy_lag/old_fraction": 0.5, "utilization/ess_old": 0.6},
    ]
    assert series(records, "utilization/ess_old", over="env_steps") == ([95, 100], [0.0, 0.6])
    assert closing_mean(records, "utilization/ess_old") == 0.3
    assert closing_mean(records[:1], "utilization/ess_old") is None
    assert closing_mean(records[:1], "policy_lag/old_fraction") == 0.0


def test_rates_are_averaged_by_time():
    # 3 s at 10/s, then 1 s at 50/s: 80 in 4 s. Points before the closing window only start the clock.
    records = [
        {"env_steps": 0, "seconds": 5.0, "rate": 999.0},
        {"env_steps": 90, "seconds": 8.0, "rate": 10.0},
        {"env_steps": 100, "seconds": 9.0, "rate": 50.0},
    ]
    assert closing_mean(records, "rate", by_time=True) == 20.0
    assert closing_mean(records, "rate") == 30.0
    # The first log point covers the time since the start: 2 s at 10/s, 1 s at 40/s.
    start = [{"env_steps": 9, "seconds": 2.0, "rate": 10.0}, {"env_steps": 9, "seconds": 3.0, "rate": 40.0}]
    assert closing_mean(start, "rate", by_time=True) == 20.0


def test_the_opening_is_the_first_values():
    assert opening_mean(RECORDS, "a", points=2) == 75.0
    assert opening_mean(RECORDS, "b") is None


def test_the_last_value_is_the_newest_there_is():
    assert (last(RECORDS, "a"), last(RECORDS, "b")) == (3.0, None)


def test_points_that_were_not_finite_are_counted():
    assert nonfinite_counts(RECORDS) == {"a": 1}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({"name": "gae", "time_limit": "end"}, "counted as ended, with nothing to earn"),
        ({"name": "gae", "time_limit": "bootstrap"}, "interrupted: the critic's value"),
        ({"name": "gae"}, "older than targets.time_limit"),
    ],
)
def test_a_summary_says_what_the_horizon_was_to_the_task(full_run, targets, said):
    manifest = json.loads((full_run / "manifest.json").read_text())
    manifest["recipe"]["targets"] = targets
    (full_run / "manifest.json").write_text(json.dumps(manifest))
    [sentence] = [text for text in run_sentences(read_run(full_run)) if "the horizon" in text]
    assert said in sentence


@pytest.mark.parametrize(
    ("precision", "p95", "said"),
    [
        ("bf16", 0.2, "0.05 to 0.27 per token, more for a more certain policy. This is within that."),
        ("bf16", 0.4, "more than rounding explains"),
        ("fp32", 1e-5, "less than 0.001. This is within that."),
        ("fp32", 0.2, "more than rounding explains"),
        (None, 0.2, "ρ is 1 there except for rounding."),
    ],
)
def test_a_summary_compares_log_ratios_at_lag_zero_with_rounding(full_run, precision, p95, said):
    lines = [json.loads(line) for line in (full_run / "metrics.jsonl").read_text().splitlines()]
    assert "current weights had acted" not in " ".join(run_sentences(read_run(full_run)))
    values = {"ratio/lag0_abs_log_p95": p95, "ratio/lag0_joint_abs_log_p95": 3 * p95}
    (full_run / "metrics.jsonl").write_text("".join(json.dumps(line | values) + "\n" for line in lines))
    manifest = json.loads((full_run / "manifest.json").read_text())
    manifest["recipe"]["learner"] = {} if precision is None else {"precision": precision}
    (full_run / "manifest.json").write_text(json.dumps(manifest))
    [sentence] = [text for text in run_sentences(read_run(full_run)) if "current weights had acted" in text]
    assert sentence.endswith(said) or said in sentence


def test_a_summary_says_what_was_measured(full_run):
    sentences = run_sentences(read_run(full_run))
    assert sentences == [
        "50 optimizer steps, 20 episodes, 200 decisions and 1,000 env steps in 0:05:00.",
        # Opening: mean of 0.1 to 0.5; closing: env steps 800 to 1000, so 0.8, 0.9 and 1.0.
        "Training episodes succeeded in 30 % of cases at first and in 90 % over the last 20 % of env steps "
        "(sampled actions and training states: not a benchmark score).",
        "Evaluation final, libero_goal: 90.0 % success (95 % interval 69.9 % to 97.2 %, 20 episodes).",
        "Samples were 9 policy versions old in the mean (P95 18), 25 % of them counted as old; 95 % of |log ρ| lay "
        "below 0.5 (over the last 20 % of env steps).",
    ]


def test_everything_a_reader_must_mind_is_named(full_run):
    assert warnings(read_run(full_run)) == [
        "Log points at which learner/approx_kl was not finite: 1.",
        "Updates skipped, because a gradient was not finite: 2.",
        "Deviation from the protocol: proxy assets",
        "The source tree differed from its commit.",
        "Evaluation final deviates from the protocol: horizon 100 instead of 300",
        "libero_goal: 20 episodes leave an interval 27 points wide.",
    ]


def test_a_run_without_a_manifest_cannot_be_traced(bare_run):
    assert "There is no manifest: the run's software, hardware and data are unknown." in warnings(read_run(bare_run))


def test_a_run_that_ended_at_once_is_summed_up_too(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    assert run_sentences(read_run(tmp_path)) == ["The run ended before its first log point."]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected the folder of a run with a metrics\.jsonl"):
        read_run(tmp_path)


def test_broken_files_of_a_run_are_named(full_run):
    results = full_run / "eval" / "final" / "results.json"
    results.write_text(json.dumps({"suites": []}))
    with pytest.raises(ValueError, match=r"results\.json: .* found no confidence, tasks, notes"):
        read_run(full_run)
    results.write_text("{")
    with pytest.raises(ValueError, match=r"results\.json: expected JSON"):
        read_run(full_run)
    results.unlink()
    (full_run / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"manifest\.json: expected a JSON object, found list"):
        read_run(full_run)
