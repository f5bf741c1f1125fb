"""Several runs' curves combined: mean and interval along a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vla_rl.evaluation.statistics import Float64Array, stratified_mean_interval
from vla_rl.reporting.series import series
from vla_rl.studies.metaworld.results import RunResult, labels, select
from vla_rl.studies.metaworld.scores import (
    RESAMPLES,
)

CURVE_POINTS = 41

Values = Sequence[float]
Curve = tuple[Values, Values]  # clock, values


@dataclass(frozen=True, slots=True)
class Band:
    """Mean over runs with its bootstrap interval, along a clock."""

    clock: Float64Array  # (n,)
    mean: Float64Array
    low: Float64Array  # NaN where a task has a single run
    high: Float64Array
    runs: int


def return_band(results: Sequence[RunResult]) -> Band:
    """Learning curve: mean return over runs on a common grid of env steps."""
    return _band(_by_task(results, RunResult.curve), np.interp)


def metric_band(results: Sequence[RunResult], metric: str) -> Band | None:
    """A metric over optimizer steps; None if no run has it."""
    curves = _by_task(results, lambda result: series(result.records, metric, over="optimizer_steps"))
    return _band(curves, _binned) if curves else None


def _by_task(results: Sequence[RunResult], curve_of: Callable[[RunResult], Curve]) -> list[list[Curve]]:
    """Return the non-empty curves of every task that has any."""
    tasks = [
        [curve for result in select(results, task=task) if (curve := curve_of(result))[0]]
        for task in labels(results, lambda run: run.task)
    ]
    return [curves for curves in tasks if curves]


def _band(tasks: Sequence[Sequence[Curve]], at: Callable[[Float64Array, Values, Values], Float64Array]) -> Band:
    """Return the mean of the tasks' means on one clock, and its interval with seeds redrawn by task.

    Args:
        tasks: curves of each task's runs.
        at: function from a curve and points of the common clock to values.
    """
    curves = [curve for task in tasks for curve in task]
    start, end = max(clock[0] for clock, _ in curves), min(clock[-1] for clock, _ in curves)
    clock = np.linspace(start, end, CURVE_POINTS)
    rows = [np.array([at(clock, *curve) for curve in task]) for task in tasks]  # (runs, n) of each task
    mean: Float64Array = np.mean([task.mean(axis=0) for task in rows], axis=0)
    intervals = [
        stratified_mean_interval([list(task[:, point]) for task in rows], resamples=RESAMPLES)
        for point in range(CURVE_POINTS)
    ]
    low, high = (np.array([getattr(interval, end) for interval in intervals]) for end in ("low", "high"))
    if min(map(len, rows)) < 2:
        low = high = np.full(CURVE_POINTS, np.nan)
    return Band(clock, mean, low, high, len(curves))


def _binned(clock: Float64Array, of_curve: Values, values_of_curve: Values) -> Float64Array:
    """Return the mean of the values nearest to each point of the clock; interpolated where there is none.

    Meant for metrics of single batches, where interpolation would use only a few of them.
    """
    times, values = np.array(of_curve), np.array(values_of_curve)
    if len(clock) < 2 or clock[-1] == clock[0]:
        return np.full(len(clock), values.mean())
    place = np.clip(np.rint((times - clock[0]) / (clock[1] - clock[0])), 0, len(clock) - 1).astype(int)
    count = np.bincount(place, minlength=len(clock))
    total = np.bincount(place, weights=values, minlength=len(clock))
    means: Float64Array = np.where(count > 0, total / np.maximum(count, 1), np.interp(clock, times, values))
    return means
