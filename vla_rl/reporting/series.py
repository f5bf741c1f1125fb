"""Series and means computed from the log points of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

Records = Sequence[dict[str, Any]]

CLOSING_SHARE = 0.2  # share of the run's env steps; the usual window for reporting final performance


_OF_OLD_SAMPLES = "utilization/ess_old"


def value_of(record: Mapping[str, Any], name: str) -> float | None:
    """Return a metric of one log point; None if it has none.

    The effective sample size of old samples is written as 0 where no sample was old; that 0 has no meaning and is read
    as None.
    """
    if name == _OF_OLD_SAMPLES and record.get("policy_lag/old_fraction") == 0:
        return None
    value: float | None = record.get(name)
    return value


def series(records: Records, name: str, *, over: str) -> tuple[list[float], list[float]]:
    """Return the points of one metric.

    Args:
        records: log points, oldest first.
        name: the metric.
        over: clock of the first axis.

    Returns:
        Clock values and metric values of the points that have a finite value, oldest first.
    """
    points = [(record[over], value) for record in records if (value := value_of(record, name)) is not None]
    return [float(clock) for clock, _ in points], [float(value) for _, value in points]


def closing_mean(records: Records, name: str, *, by_time: bool = False, share: float = CLOSING_SHARE) -> float | None:
    """Return the mean over the last part of a run's env steps; None if the metric has no value there.

    Args:
        records: log points, oldest first.
        name: the metric.
        by_time: weigh each log point by the time since the previous one, which is right for rates and shares of time.
        share: share of the env steps that counts as the last part.
    """
    if not records:
        return None
    start = records[-1]["env_steps"] * (1 - share)
    weights = _seconds_since_last(records) if by_time else [1.0] * len(records)
    closing = [
        (value, weight)
        for record, weight in zip(records, weights, strict=True)
        if record["env_steps"] >= start and (value := value_of(record, name)) is not None
    ]
    total = sum(weight for _, weight in closing)
    return sum(value * weight for value, weight in closing) / total if total > 0 else None


def _seconds_since_last(records: Records) -> list[float]:
    clock = [0.0] + [record["seconds"] for record in records]
    return [max(0.0, after - before) for before, after in pairwise(clock)]


def opening_mean(records: Records, name: str, *, points: int = 5) -> float | None:
    """Return the mean of a metric's first few values; None if it has none."""
    return _mean(series(records, name, over="env_steps")[1][:points])


def last(records: Records, name: str) -> float | None:
    """Return the newest value of a metric; None if it has none."""
    values = series(records, name, over="env_steps")[1]
    return values[-1] if values else None


def nonfinite_counts(records: Records) -> dict[str, int]:
    """Count the log points at which each metric was not finite; metrics that were always finite are left out."""
    counts: dict[str, int] = {}
    for record in records:
        for name in record.get("nonfinite", ()):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
