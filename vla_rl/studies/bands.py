"""Several curves combined: mean and interval along a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vla_rl.evaluation.statistics import Float64Array, stratified_mean_interval

RESAMPLES = 2000
CURVE_POINTS = 41

Values = Sequence[float]
Curve = tuple[Values, Values]  # clock, values


@dataclass(frozen=True, slots=True)
class Band:
    """Mean over runs with its bootstrap interval, along a clock."""

    clock: Float64Array  # (n,)
    mean: Float64Array
    low: Float64Array  # NaN where a stratum has a single run
    high: Float64Array
    runs: int


def band(strata: Sequence[Sequence[Curve]], at: Callable[[Float64Array, Values, Values], Float64Array]) -> Band:
    """Return the mean of the strata's means on one clock, and its interval with runs redrawn within each stratum.

    Args:
        strata: curves of each stratum's runs, such as those of a task; none is empty.
        at: function from points of the common clock and a curve to values, such as `np.interp` or `binned`.
    """
    curves = [curve for stratum in strata for curve in stratum]
    start, end = max(clock[0] for clock, _ in curves), min(clock[-1] for clock, _ in curves)
    clock = np.linspace(start, end, CURVE_POINTS)
    rows = [np.array([at(clock, *curve) for curve in stratum]) for stratum in strata]  # (runs, n) of each stratum
    mean: Float64Array = np.mean([stratum.mean(axis=0) for stratum in rows], axis=0)
    intervals = [
        stratified_mean_interval([list(stratum[:, point]) for stratum in rows], resamples=RESAMPLES)
        for point in range(CURVE_POINTS)
    ]
    low, high = (np.array([getattr(interval, end) for interval in intervals]) for end in ("low", "high"))
    if min(map(len, rows)) < 2:
        low = high = np.full(CURVE_POINTS, np.nan)
    return Band(clock, mean, low, high, len(curves))


def binned(clock: Float64Array, of_curve: Values, values_of_curve: Values) -> Float64Array:
    """Return the mean of the values nearest to each point of the clock; interpolated where there is none.

    Meant for metrics of single batches, where interpolation would use only a few of them. Values before the clock's
    first point or after its last, by more than half the distance of two points, are left out.
    """
    times, values = np.array(of_curve), np.array(values_of_curve)
    if len(clock) < 2 or clock[-1] == clock[0]:
        return np.full(len(clock), values.mean())
    nearest = np.rint((times - clock[0]) / (clock[1] - clock[0]))
    within = (nearest >= 0) & (nearest < len(clock))
    place = nearest[within].astype(int)
    count = np.bincount(place, minlength=len(clock))
    total = np.bincount(place, weights=values[within], minlength=len(clock))
    means: Float64Array = np.where(count > 0, total / np.maximum(count, 1), np.interp(clock, times, values))
    return means
