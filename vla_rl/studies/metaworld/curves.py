"""Curves of several Meta-World runs combined: mean and interval along a clock."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vla_rl.reporting.series import series
from vla_rl.studies.bands import Band, Curve, band, binned
from vla_rl.studies.metaworld.results import RunResult, RunTable


def return_band(results: RunTable) -> Band:
    """Learning curve: mean return over runs on a common grid of env steps."""
    return band(_by_task(results, RunResult.curve), np.interp)


def metric_band(results: RunTable, metric: str) -> Band | None:
    """A metric over optimizer steps; None if no run has it."""
    curves = _by_task(results, lambda result: series(result.records, metric, over="optimizer_steps"))
    return band(curves, binned) if curves else None


def _by_task(results: RunTable, curve_of: Callable[[RunResult], Curve]) -> list[list[Curve]]:
    """Return the non-empty curves of every task that has any."""
    tasks = [[curve for result in results.where(task=task) if (curve := curve_of(result))[0]] for task in results.tasks]
    return [curves for curves in tasks if curves]
