"""Finished runs of a study of groups, and what they say about each method.

Success is the share of successful training episodes, with sampled actions, among the last `Start.window`. It looks
back, by half a window in the mean, in the same way for all methods. A run has reached its target at the first log point
at which a whole window has it.

The budget is in env steps, so a policy that fails plays fewer, longer episodes. Means are therefore restricted to the
episodes that every run of a start had, and a run that never reached its target is slower than every one that did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from vla_rl.evaluation.episode_log import EPISODES_FILE, read_episodes
from vla_rl.evaluation.pairs import Comparison, compare
from vla_rl.evaluation.statistics import (
    Interval,
    improvement_interval,
    probability_of_improvement,
    stratified_mean_interval,
    unless_point,
)
from vla_rl.files import read_json_object
from vla_rl.recipe import load_recorded_recipe
from vla_rl.reporting.metrics_file import METRICS_FILE, read_metrics
from vla_rl.reporting.run_folder import RECIPE_FILE
from vla_rl.reporting.run_state import read_state
from vla_rl.reporting.series import Records, closing_mean, series, value_of
from vla_rl.studies.grouped.plan import SIZE, GroupPlan, GroupRun, Start
from vla_rl.studies.grouped.runner import RUN, RUN_FILE, RUNS, after_name, before_name
from vla_rl.studies.study_file import STUDY_FILE

SUCCESS = "rollout/success_rate"
NEVER = -sys.float_info.max  # below every number of episodes; infinities have no difference


@dataclass(frozen=True, slots=True)
class GroupResult:
    """One finished run."""

    run: GroupRun
    start: Start
    records: Records
    budget: int  # episodes
    seconds: float  # wall clock, start to end
    ended_early: str  # why, if it ended by itself before its budget; otherwise empty

    def curve(self) -> tuple[list[float], list[float]]:
        """Return episodes played and success over the window, from the first whole window on."""
        episodes, success = series(self.records, SUCCESS, over="episodes")
        whole = [place for place, played in enumerate(episodes) if played >= self.start.window]
        return [episodes[place] for place in whole], [success[place] for place in whole]

    @property
    def reached(self) -> int | None:
        """Return the episodes until the target was reached; None if it was not."""
        episodes, success = self.curve()
        return next((int(at) for at, rate in zip(episodes, success, strict=True) if rate >= self.start.target), None)

    @property
    def episodes_until(self) -> int:
        """Return the episodes until the target, or those of this run's budget."""
        return self.budget if self.reached is None else self.reached

    @property
    def closing_success(self) -> float | None:
        """Return the success over the last 20 % of the env steps."""
        return closing_mean(self.records, SUCCESS)

    @property
    def optimizer_steps(self) -> int:
        """Return the updates."""
        return int(self.records[-1]["optimizer_steps"])

    @property
    def mixed_at_first(self) -> float | None:
        """Return the share of groups with both outcomes in the first whole window; None without groups.

        A window has as many groups as their episodes fill.
        """
        for record in self.records:
            succeeded, failed = value_of(record, "groups/all_success"), value_of(record, "groups/all_fail")
            if record["episodes"] >= self.start.window and succeeded is not None and failed is not None:
                return 1.0 - succeeded - failed
        return None

    @property
    def episodes_per_useful(self) -> float | None:
        """Return the episodes played per group that was kept, mean over the run's log points."""
        values = series(self.records, "groups/episodes_per_useful", over="episodes")[1]
        return fmean(values) if values else None


@dataclass(frozen=True, slots=True)
class Gain:
    """A run's policy beside its start on the same held-out states."""

    run: GroupRun
    comparison: Comparison  # the first is the run's policy


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method from one start, over its seeds."""

    start: str
    method: str
    seeds: int
    reached: int  # runs
    limit: int  # episodes that every run of the start had
    episodes: float  # until the target, in the mean; those beyond the limit do not count
    interval: Interval | None  # of it, 95 %; None: one run, or no spread
    closing_success: float | None
    mixed_at_first: float | None
    episodes_per_useful: float | None
    optimizer_steps: float
    seconds: float


@dataclass(frozen=True, slots=True)
class FasterThan:
    """Probability that a run of the first method needs fewer episodes than one of the second, from one start."""

    start: str
    first: str
    second: str
    probability: float
    interval: Interval | None


def says_something(out: Path) -> bool:
    """Return whether a run has finished, so that there is a page to write."""
    stages = {read_json_object(path).get("stage", RUN) for path in (out / RUNS).glob(f"*/{RUN_FILE}")}
    return RUN in stages


def read_gains(results: Sequence[GroupResult], out: Path) -> tuple[list[Gain], list[str]]:
    """Compare every run that was evaluated with its start; return also a sentence about each unreadable evaluation."""
    gains: list[Gain] = []
    broken: list[str] = []
    for result in results:
        before, after = (out / RUNS / name for name in (before_name(result.start), after_name(result.run)))
        if not all((folder / RUN_FILE).is_file() for folder in (before, after)):
            continue
        try:
            first, second = (read_episodes(folder / EPISODES_FILE) for folder in (after, before))
            gains.append(Gain(result.run, compare(first, second)))
        except (ValueError, FileNotFoundError) as error:
            broken.append(f"{after.name}: {error}")
    return gains, broken


def mixed_share(success: float, size: int = SIZE) -> float:
    """Return the probability that a group of independent episodes has both outcomes: 1 − pⁿ − (1 − p)ⁿ."""
    return float(1.0 - success**size - (1.0 - success) ** size)


def read_results(plan: GroupPlan, out: Path) -> tuple[list[GroupResult], list[str]]:
    """Return the finished runs of a study in the plan's order, and a sentence about each unreadable one.

    Raises:
        ValueError: no run has finished, or none can be read.
    """
    found: list[GroupResult] = []
    broken: list[str] = []
    for run in plan.runs():
        folder = out / RUNS / run.name
        if not (folder / RUN_FILE).is_file():
            continue
        try:
            found.append(_read_run(plan, run, folder))
        except (ValueError, FileNotFoundError) as error:
            broken.append(f"{run.name}: {error}")
    if not found:
        raise ValueError("; ".join([f"{out / STUDY_FILE}: no run of the study has finished and can be read", *broken]))
    return found, broken


def _read_run(plan: GroupPlan, run: GroupRun, folder: Path) -> GroupResult:
    """Read a finished run.

    Raises:
        ValueError, FileNotFoundError: a file is missing or broken.
    """
    start, recipe = plan.start(run), load_recorded_recipe(folder / RECIPE_FILE)
    seconds = read_json_object(folder / RUN_FILE).get("seconds")
    records = read_metrics(folder / METRICS_FILE)
    if not isinstance(seconds, int | float) or not series(records, SUCCESS, over="episodes")[0]:
        raise ValueError(f"{folder}: expected the seconds of the run in {RUN_FILE} and {SUCCESS} in {METRICS_FILE}")
    played = records[-1]["env_steps"] / records[-1]["episodes"]  # env steps of an episode
    return GroupResult(
        run=run,
        start=start,
        records=records,
        budget=round(start.env_steps / min(played, recipe.env.episode_horizon)),
        seconds=float(seconds),
        ended_early=read_state(folder, is_spent=True).reason,
    )


def summaries(plan: GroupPlan, results: Sequence[GroupResult]) -> list[MethodSummary]:
    """Return a summary of every method from every start that has runs, in the plan's order."""
    return [
        _summary(chosen, limit=min(result.budget for result in select(results, start=start.name)))
        for start in plan.starts
        for method in plan.methods
        if (chosen := select(results, start=start.name, method=method))
    ]


def _summary(results: Sequence[GroupResult], *, limit: int) -> MethodSummary:
    episodes = [float(min(result.episodes_until, limit)) for result in results]
    interval = stratified_mean_interval([episodes]) if len(episodes) > 1 else None
    return MethodSummary(
        start=results[0].run.start,
        method=results[0].run.method,
        seeds=len(results),
        reached=sum(result.reached is not None for result in results),
        limit=limit,
        episodes=fmean(episodes),
        interval=None if interval is None else unless_point(interval),
        closing_success=_mean(results, lambda result: result.closing_success),
        mixed_at_first=_mean(results, lambda result: result.mixed_at_first),
        episodes_per_useful=_mean(results, lambda result: result.episodes_per_useful),
        optimizer_steps=fmean(result.optimizer_steps for result in results),
        seconds=fmean(result.seconds for result in results),
    )


def comparisons(plan: GroupPlan, results: Sequence[GroupResult]) -> list[FasterThan]:
    """Compare every two methods of a start that both have two runs or more.

    Two runs that both never reached the target are tied.
    """
    found = []
    for start in plan.starts:
        tables = {
            method: np.array([[NEVER if result.reached is None else -float(result.reached)] for result in chosen])
            for method in plan.methods
            if len(chosen := select(results, start=start.name, method=method)) > 1
        }
        for place, first in enumerate(tables):
            for second in list(tables)[place + 1 :]:
                interval = improvement_interval(tables[first], tables[second])
                probability = probability_of_improvement(tables[first], tables[second])
                found.append(FasterThan(start.name, first, second, probability, unless_point(interval)))
    return found


def select(results: Sequence[GroupResult], *, start: str | None = None, method: str | None = None) -> list[GroupResult]:
    """Return the runs with these values; None matches all."""
    return [result for result in results if start in (None, result.run.start) and method in (None, result.run.method)]


def _mean(results: Sequence[GroupResult], value_of: Callable[[GroupResult], float | None]) -> float | None:
    values = [value for result in results if (value := value_of(result)) is not None]
    return fmean(values) if values else None
