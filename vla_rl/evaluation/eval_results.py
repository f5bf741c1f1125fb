"""Results of an evaluation: rates with intervals per task and suite."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from vla_rl.evaluation.episode_log import EpisodeResult
from vla_rl.evaluation.statistics import (
    CONFIDENCE,
    Float64Array,
    Interval,
    interquartile_mean,
    iqm_interval,
    stratified_mean_interval,
    unless_point,
    wilson_interval,
)
from vla_rl.files import atomic_write_json, atomic_write_text
from vla_rl.reporting.run_folder import RESULTS_FILE

TABLE_FILE = "results.csv"
SCHEMA = 1
MIN_SEEDS = 5  # with fewer seeds, too many resamples consist of a single seed
WIDE_INTERVAL = 0.10  # a wider interval cannot distinguish policies that differ by a few points


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task."""

    suite: str
    task_id: int
    language: str  # the policy's instruction; empty if unknown
    episodes: int
    successes: int
    success_rate: float
    wilson: Interval  # interval of the task's rate
    mean_return: float
    mean_env_steps: float


@dataclass(frozen=True, slots=True)
class SuiteSummary:
    """Summary of one suite. Tasks have equal weight, however many episodes each has."""

    suite: str
    tasks: int
    episodes: int
    successes: int
    success_rate: float  # mean of the tasks' rates
    wilson: Interval  # interval of all episodes as one sample
    bootstrap: Interval | None  # of `success_rate`, initial states redrawn within tasks; None: no task's outcomes vary
    mean_return: float  # mean of the tasks' means
    mean_env_steps: float  # mean of the tasks' means
    seconds: float  # summed over episodes, wall clock
    seeds: int
    iqm: float | None  # interquartile mean over seeds and tasks; None unless every seed has every task
    iqm_interval: Interval | None  # interval of `iqm`, seeds redrawn within tasks; None: too few seeds, or all the same


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """Summary of an evaluation, with caveats."""

    confidence: float
    suites: tuple[SuiteSummary, ...]
    tasks: tuple[TaskSummary, ...]
    notes: tuple[str, ...]  # sentences

    def rows(self) -> list[dict[str, str | int | float]]:
        """Return one flat row per task, then one per suite (`task_id` "all"), for tables and CSV."""
        return [_row(task, task_id=task.task_id) for task in self.tasks] + [
            _row(suite, task_id="all") for suite in self.suites
        ]


def _row(summary: TaskSummary | SuiteSummary, *, task_id: int | str) -> dict[str, str | int | float]:
    interval = summary.bootstrap if isinstance(summary, SuiteSummary) else None
    return {
        "suite": summary.suite,
        "task_id": task_id,
        "language": summary.language if isinstance(summary, TaskSummary) else "",
        "episodes": summary.episodes,
        "successes": summary.successes,
        "success_rate": summary.success_rate,
        "wilson_low": summary.wilson.low,
        "wilson_high": summary.wilson.high,
        "bootstrap_low": "" if interval is None else interval.low,
        "bootstrap_high": "" if interval is None else interval.high,
        "mean_return": summary.mean_return,
        "mean_env_steps": summary.mean_env_steps,
    }


def summarise(
    results: Iterable[EpisodeResult],
    *,
    languages: Mapping[tuple[str, int], str] = MappingProxyType({}),
    stored: Collection[str] = (),
    confidence: float = CONFIDENCE,
) -> EvaluationSummary:
    """Compute rates and intervals per task and per suite, in the order of names and task ids.

    Args:
        results: the episodes, in any order: the summary does not depend on it.
        languages: the tasks' texts, by suite and task id.
        stored: suites whose initial states are the same with every seed; in others a seed draws its own.
        confidence: coverage of every interval.

    Raises:
        ValueError: there is no episode.
    """
    ordered = sorted(results, key=lambda episode: episode.key)
    if not ordered:
        raise ValueError("an evaluation without an episode cannot be summarised")
    suites, tasks = [], []
    for suite, episodes in group_by(ordered, lambda episode: episode.suite).items():
        by_task = group_by(episodes, lambda episode: episode.task_id)
        of_suite = [
            _summarise_task(task, language=languages.get((suite, task_id), ""), confidence=confidence)
            for task_id, task in by_task.items()
        ]
        tasks.extend(of_suite)
        suites.append(_summarise_suite(suite, of_suite, list(by_task.values()), confidence=confidence))
    notes = tuple(note for suite in suites for note in _notes(suite, tasks, is_stored=suite.suite in stored))
    return EvaluationSummary(confidence=confidence, suites=tuple(suites), tasks=tuple(tasks), notes=notes)


def _summarise_task(episodes: Sequence[EpisodeResult], *, language: str, confidence: float) -> TaskSummary:
    count, successes = len(episodes), sum(episode.success for episode in episodes)
    return TaskSummary(
        suite=episodes[0].suite,
        task_id=episodes[0].task_id,
        language=language,
        episodes=count,
        successes=successes,
        success_rate=successes / count,
        wilson=wilson_interval(successes, count, confidence=confidence),
        mean_return=sum(episode.episode_return for episode in episodes) / count,
        mean_env_steps=sum(episode.env_steps for episode in episodes) / count,
    )


def _summarise_suite(
    suite: str,
    tasks: Sequence[TaskSummary],
    episodes_by_task: Sequence[Sequence[EpisodeResult]],
    *,
    confidence: float,
) -> SuiteSummary:
    episodes, successes = sum(task.episodes for task in tasks), sum(task.successes for task in tasks)
    outcomes = [rates_by_state(episodes) for episodes in episodes_by_task]
    scores = _scores(episodes_by_task)
    return SuiteSummary(
        suite=suite,
        tasks=len(tasks),
        episodes=episodes,
        successes=successes,
        success_rate=sum(task.success_rate for task in tasks) / len(tasks),
        wilson=wilson_interval(successes, episodes, confidence=confidence),
        bootstrap=unless_point(stratified_mean_interval(outcomes, confidence=confidence)),
        mean_return=sum(task.mean_return for task in tasks) / len(tasks),
        mean_env_steps=sum(task.mean_env_steps for task in tasks) / len(tasks),
        seconds=sum(episode.seconds for episodes in episodes_by_task for episode in episodes),
        seeds=len({episode.seed for episodes in episodes_by_task for episode in episodes}),
        iqm=None if scores is None else interquartile_mean(scores),
        iqm_interval=None
        if scores is None or len(scores) < MIN_SEEDS
        else unless_point(iqm_interval(scores, confidence=confidence)),
    )


def rates_by_state(episodes: Sequence[EpisodeResult]) -> list[float]:
    """Return success rates over seeds, one per initial state: seeds that play the same state are not independent."""
    by_state = group_by(episodes, lambda episode: episode.key[:4])
    return [sum(it.success for it in own) / len(own) for own in by_state.values()]


def _scores(episodes_by_task: Sequence[Sequence[EpisodeResult]]) -> Float64Array | None:
    """Return the success rate per seed and task, (S, T); None if a seed lacks a task."""
    columns = []
    for episodes in episodes_by_task:
        by_seed = group_by(sorted(episodes, key=lambda episode: episode.seed), lambda episode: episode.seed)
        columns.append({seed: sum(it.success for it in own) / len(own) for seed, own in by_seed.items()})
    if any(column.keys() != columns[0].keys() for column in columns):
        return None
    return np.array([[column[seed] for column in columns] for seed in columns[0]], dtype=np.float64)


def _notes(suite: SuiteSummary, tasks: Sequence[TaskSummary], *, is_stored: bool) -> list[str]:
    notes = []
    width = suite.wilson.high - suite.wilson.low
    if width > WIDE_INTERVAL:
        protocol = " LIBERO's protocol has 50 per task." if suite.suite.startswith("libero_") else ""
        notes.append(
            f"{suite.suite}: {suite.episodes} episodes leave an interval {100 * width:.0f} points wide; differences "
            f"smaller than that are noise.{protocol}"
        )
    counts = {task.episodes for task in tasks if task.suite == suite.suite}
    if len(counts) > 1:
        notes.append(
            f"{suite.suite}: its tasks have between {min(counts)} and {max(counts)} episodes; the suite's rate is the "
            "mean of the tasks' rates, Wilson's interval is that of all episodes."
        )
    is_repeated = suite.seeds > 1 and is_stored
    if suite.bootstrap is None:
        notes.append(
            f"{suite.suite}: within each task all initial states have the same success rate, so a bootstrap has "
            f"nothing to redraw; go by Wilson's interval{' of a single seed' if is_repeated else ''}."
        )
    if is_repeated:
        other = "" if suite.bootstrap is None else "; the bootstrap redraws initial states with all their seeds"
        notes.append(
            f"{suite.suite}: {suite.seeds} seeds play the same initial states, so its episodes are not independent and "
            f"Wilson's interval is too narrow{other}."
        )
    if suite.seeds > 1 and suite.iqm_interval is None:
        reason = (
            f"{suite.seeds} seeds are too few to redraw, {MIN_SEEDS} are the least"
            if suite.seeds < MIN_SEEDS
            else "whatever seeds are redrawn it is the same, for it drops the best and the worst quarter"
        )
        notes.append(f"{suite.suite}: the interquartile mean has no interval: {reason}.")
    return notes


def write_results(
    folder: Path,
    results: Iterable[EpisodeResult],
    *,
    languages: Mapping[tuple[str, int], str] = MappingProxyType({}),
    stored: Collection[str] = (),
    notes: Sequence[str] = (),
    columns: Mapping[str, str] = MappingProxyType({}),
    details: Mapping[str, object] = MappingProxyType({}),
) -> EvaluationSummary:
    """Write `results.json` and `results.csv` beside the episodes.

    Args:
        folder: folder to write to; created if it is missing.
        results: the episodes.
        languages: the tasks' texts, by suite and task id.
        stored: suites whose initial states are the same with every seed.
        notes: sentences that a reader must know, in addition to those derived from the numbers.
        columns: values added to every row of the table.
        details: more keys of `results.json`.

    Returns:
        The summary that was written.

    Raises:
        ValueError: there is no episode.
    """
    summary = summarise(results, languages=languages, stored=stored)
    summary = replace(summary, notes=(*notes, *summary.notes))
    atomic_write_json(folder / RESULTS_FILE, {"schema": SCHEMA, **asdict(summary), **details})
    table = io.StringIO()
    rows = [{**row, **columns} for row in summary.rows()]
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(folder / TABLE_FILE, table.getvalue())
    return summary


Item = TypeVar("Item")


def group_by(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Group items by key, both in order of appearance."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
