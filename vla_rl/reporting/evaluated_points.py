"""Evaluations that a run makes while it trains, as its log points hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vla_rl.reporting.metrics_file import is_number
from vla_rl.reporting.series import Records

SUCCESS = "evaluation/success_rate"


@dataclass(frozen=True, slots=True)
class EvaluatedPoint:
    """One evaluation while training."""

    optimizer_steps: int
    success_rate: float  # mean over tasks
    low: float  # Wilson's 95 % interval, all episodes as one sample
    high: float
    episodes: int
    seconds: float  # wall clock

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self | None:
        """Return the evaluation of a log point; None if it holds none."""
        names = (SUCCESS, "evaluation/success_low", "evaluation/success_high", "evaluation/episodes")
        values = [record.get(name) for name in (*names, "perf/evaluation_s")]
        if not all(is_number(value) for value in values):
            return None
        rate, low, high, episodes, seconds = (float(value) for value in values if value is not None)
        return cls(int(record["optimizer_steps"]), rate, low, high, int(episodes), seconds)

    def metrics(self) -> dict[str, float]:
        """Return its part of a log point."""
        return {
            SUCCESS: self.success_rate,
            "evaluation/success_low": self.low,
            "evaluation/success_high": self.high,
            "evaluation/episodes": self.episodes,
            "perf/evaluation_s": self.seconds,
        }


def evaluated_points(records: Records) -> list[EvaluatedPoint]:
    """Return the evaluations in log points, oldest first; of two at one optimizer step the newer one."""
    points = (point for record in records if (point := EvaluatedPoint.of(record)) is not None)
    return list({point.optimizer_steps: point for point in points}.values())
