"""Summary of a run in sentences, computed from its log points. Each states what was measured and over what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_rl.reporting.evaluated_points import evaluated_points
from vla_rl.reporting.manifest import EARLIER, changes_in_words
from vla_rl.reporting.run_folder import Evaluation, WrittenRun
from vla_rl.reporting.series import Records, closing_mean, last, nonfinite_counts, opening_mean
from vla_rl.reporting.text import duration, number, percent

CLOSING = "over the last 20 % of env steps"


def run_sentences(run: WrittenRun) -> list[str]:
    """Return the summary of one run, most important sentences first."""
    if not run.records:
        return ["The run ended before its first log point."]
    candidates = [
        _extent(run.records),
        f"It ended before its budget was spent: {run.reason}." if run.reason else None,
        _success(run.records),
        _return(run),
        _meanwhile(run.records),
        _time_limit(run),
        *(sentence for evaluation in run.evaluations for sentence in evaluation_sentences(evaluation)),
        _lag(run.records),
        _rounding(run),
        _use(run.records),
        _pace(run.records),
    ]
    return [sentence for sentence in candidates if sentence is not None]


def _extent(records: Records) -> str:
    end = records[-1]
    return (
        f"{end['optimizer_steps']:,} optimizer steps, {end['episodes']:,} episodes, {end['decisions']:,} decisions and "
        f"{end['env_steps']:,} env steps in {duration(end['seconds'])}."
    )


def _success(records: Records) -> str | None:
    before = opening_mean(records, "rollout/success_rate")
    after = closing_mean(records, "rollout/success_rate")
    if before is None or after is None:
        return None
    return (
        f"Training episodes succeeded in {percent(before)} of cases at first and in {percent(after)} {CLOSING} "
        "(sampled actions and training states: not a benchmark score)."
    )


def _meanwhile(records: Records) -> str | None:
    """Sum up the evaluations that the run made while it trained."""
    points = evaluated_points(records)
    if not points:
        return None
    newest, share = points[-1], last(records, "perf/evaluation_fraction")
    times = "once" if len(points) == 1 else f"{len(points)} times"
    first = "" if len(points) == 1 else f"{percent(points[0].success_rate)} at first, "
    best = last(records, "evaluation/best_success_rate")
    return (
        f"It was evaluated {times} while training: {first}{percent(newest.success_rate)} success in the newest, at "
        f"optimizer step {newest.optimizer_steps:,} (95 % interval {percent(newest.low)} to {percent(newest.high)}, "
        f"{newest.episodes:,} episodes){'' if best is None else f', {percent(best)} in the best'}. That took "
        f"{percent(share, digits=1)} of the run's time."
    )


def _return(run: WrittenRun) -> str | None:
    before, after = opening_mean(run.records, "rollout/return"), closing_mean(run.records, "rollout/return")
    if before is None or after is None:
        return None
    units = "" if run.manifest is None else ", in the env's own units"  # the reward scale is unknown
    return f"Training episodes returned {number(before)} at first and {number(after)} {CLOSING}{units}."


def _time_limit(run: WrittenRun) -> str | None:
    match run.manifest:
        case {"recipe": {"targets": {"time_limit": "end"}}}:
            return (
                "An episode that reached the horizon counted as ended, with nothing to earn afterwards "
                "(targets.time_limit: end)."
            )
        case {"recipe": {"targets": {"time_limit": "bootstrap"}}}:
            return (
                "An episode that reached the horizon counted as interrupted: the critic's value stood for what would "
                "have followed (targets.time_limit: bootstrap)."
            )
        case {"recipe": {"targets": {"name": _}}}:
            return (
                "An episode that reached the horizon counted as interrupted, as in all runs that are older than "
                "targets.time_limit: the critic's value stood for what would have followed."
            )
    return None


def evaluation_sentences(evaluation: Evaluation) -> list[str]:
    """Return one sentence per suite of an evaluation."""
    level = percent(evaluation.results["confidence"])
    return [
        f"Evaluation {evaluation.name}, {suite['suite']}: {percent(suite['success_rate'], digits=1)} success ({level} "
        f"interval {percent(suite['wilson']['low'], digits=1)} to {percent(suite['wilson']['high'], digits=1)}, "
        f"{suite['episodes']:,} episodes)."
        for suite in evaluation.results["suites"]
    ]


def _lag(records: Records) -> str | None:
    mean, p95, old, tail = (
        closing_mean(records, name)
        for name in ("policy_lag/mean", "policy_lag/p95", "policy_lag/old_fraction", "ratio/abs_log_p95")
    )
    if mean is None:
        return None
    drift = "" if tail is None else f"; 95 % of |log ρ| lay below {number(tail)}"
    return (
        f"Samples were {number(mean)} policy versions old in the mean (P95 {number(p95)}), {percent(old)} of them "
        f"counted as old{drift} ({CLOSING})."
    )


def _rounding(run: WrittenRun) -> str | None:
    """Compare |log ρ| at lag 0 with what rounding is expected to make of ρ = 1.

    The expectation for bfloat16 comes from an emulation (32 layers, width 256) with random but well-conditioned
    weights: a P95 of 0.05 to 0.06 per token at an entropy of 5 nat, 0.20 to 0.27 at 1.3 nat.
    """
    p95, joint = (closing_mean(run.records, f"ratio/lag0_{name}") for name in ("abs_log_p95", "joint_abs_log_p95"))
    if p95 is None or joint is None:
        return None
    found = (
        f"Where the learner's current weights had acted, 95 % of |log ρ| lay below {number(p95)} per token and "
        f"below {number(joint)} per decision ({CLOSING})"
    )
    match run.manifest:
        case {"recipe": {"learner": {"precision": "bf16"}}}:
            expected, limit = "bfloat16 causes 0.05 to 0.27 per token, more for a more certain policy", 0.3
        case {"recipe": {"learner": {"precision": "fp32"}}}:
            expected, limit = "float32 causes less than 0.001", 1e-3
        case _:
            return f"{found}; ρ is 1 there except for rounding."
    verdict = "within that" if p95 <= limit else "more than rounding explains: compare the computations of both sides"
    return f"{found}; ρ is 1 there except for rounding. Expected: {expected}. This is {verdict}."


def _use(records: Records) -> str | None:
    dead, suppressed, near_zero, old_share = (
        closing_mean(records, f"utilization/{name}") for name in ("dead", "suppressed", "near_zero", "old_share")
    )
    if dead is None:
        return None
    return (
        f"Of the importance ratios {percent(dead, digits=1)} had no gradient, {percent(suppressed, digits=1)} a "
        f"suppressed one and {percent(near_zero, digits=1)} contributed next to nothing; old ones made "
        f"{percent(old_share, digits=1)} of the contribution ({CLOSING})."
    )


def _pace(records: Records) -> str | None:
    env_steps, samples, learner, actions, held_back = (
        closing_mean(records, f"perf/{name}", by_time=True)
        for name in (
            "env_steps_per_s",
            "learner_samples_per_s",
            "learner_wait_fraction",
            "env_wait_fraction",
            "env_held_back_fraction",
        )
    )
    if env_steps is None:
        return None
    return (
        f"The run simulated {number(env_steps)} env steps/s and learned from {number(samples)} decisions/s; the "
        f"learner waited {percent(learner)} of its time, env workers {percent(actions)} of theirs for actions and "
        f"{percent(held_back)} for the learner ({CLOSING})."
    )


def warnings(run: WrittenRun) -> list[str]:
    """Return what a reader must know before trusting the run's numbers."""
    counters = {name: last(run.records, name) for name in _COUNTERS}
    found = [*number_warnings(nonfinite_counts(run.records), counters), *manifest_warnings(run.manifest)]
    found += [f"Alarm at optimizer step {alarm.optimizer_step:,}: {alarm.sentence}." for alarm in run.alarms]
    for evaluation in run.evaluations:
        found += [f"Evaluation {evaluation.name} deviates from the protocol: {text}" for text in evaluation.deviations]
        found += evaluation.results["notes"]
    return found


_COUNTERS = {
    "learner/skipped_updates": "Updates skipped, because a gradient was not finite: {}.",
    "system/env_worker_restarts": "Restarts of env workers: {}.",
    "system/dropped_episodes": "Episodes lost because a worker died or hung: {}.",
}


def number_warnings(nonfinite: Mapping[str, int], newest: Mapping[str, float | None]) -> list[str]:
    """Return what is wrong with a run's numbers.

    Args:
        nonfinite: log points at which a metric was not finite.
        newest: newest value of each metric.
    """
    found = [f"Log points at which {name} was not finite: {count}." for name, count in nonfinite.items()]
    return found + [text.format(f"{count:,.0f}") for name, text in _COUNTERS.items() if (count := newest.get(name))]


def manifest_warnings(manifest: Mapping[str, Any] | None) -> list[str]:
    """Return what a run's manifest tells of deviations from the protocol, of its source and of changes on the way."""
    if manifest is None:
        return ["There is no manifest: the run's software, hardware and data are unknown."]
    found = []
    match manifest:
        case {"deviations": list() as deviations}:
            found += [f"Deviation from the protocol: {deviation}" for deviation in deviations]
    match manifest:
        case {"source": {"dirty": True}}:
            found.append("The source tree differed from its commit.")
    return found + changes_in_words([*manifest.get(EARLIER, ()), manifest])
