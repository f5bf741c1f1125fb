"""State of a run as the live view shows it, and rates over a recent window."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from vla_rl.reporting.evaluated_points import EvaluatedPoint
from vla_rl.reporting.metrics_file import Clocks


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSnapshot:
    """State of a run at one moment, over all its cells. None: not known yet."""

    clocks: Clocks
    samples: int  # decisions the learner has consumed so far
    success_rate: float | None = None  # of the recent training episodes, 0..1
    mean_return: float | None = None  # of the recent training episodes
    policy_lag_mean: float | None = None  # versions
    policy_lag_p95: float | None = None  # versions
    old_fraction: float | None = None  # share of samples, 0..1
    abs_log_ratio_p95: float | None = None  # nat
    env_wait_fraction: float | None = None  # share of their time env workers wait for actions
    env_held_back_fraction: float | None = None  # share of their time they wait for the learner, by the replay ratio
    inference_busy_fraction: float | None = None  # share of its time the inference worker computes
    learner_wait_fraction: float | None = None  # share of its time the learner waits for experience
    replay_size: int = 0  # decisions
    replay_capacity: int = 0  # decisions
    num_env_workers: int = 0
    env_worker_restarts: int = 0  # so far
    evaluated: EvaluatedPoint | None = None  # newest evaluation while training
    best_evaluated: EvaluatedPoint | None = None  # best one so far
    evaluation_fraction: float | None = None  # share of the run's time that they took
    run_bytes: int | None = None  # size of the run's folder


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates per second of wall clock, over a recent window."""

    env_steps: float
    decisions: float
    samples: float
    optimizer_steps: float

    def seconds_left(self, optimizer_steps: int) -> float | None:
        """Return the time for that many more updates at this rate; None if no updates are made at present."""
        return optimizer_steps / self.optimizer_steps if self.optimizer_steps > 0 else None


class RateWindow:
    """Rates over the last `span_seconds` of the snapshots' own clock: a slow start is forgotten, a stall is seen."""

    def __init__(self, *, span_seconds: float = 60.0) -> None:
        self._span = span_seconds
        self._recent: deque[RunSnapshot] = deque()

    def add(self, snapshot: RunSnapshot) -> Rates | None:
        """Add a snapshot; return the rates up to it, or None until two moments are known."""
        recent = self._recent
        recent.append(snapshot)
        # The second oldest still spans the window, so the oldest is no longer needed.
        while len(recent) > 2 and snapshot.clocks.seconds - recent[1].clocks.seconds >= self._span:
            recent.popleft()
        before, elapsed = recent[0], snapshot.clocks.seconds - recent[0].clocks.seconds
        if elapsed <= 0:
            return None
        return Rates(
            env_steps=(snapshot.clocks.env_steps - before.clocks.env_steps) / elapsed,
            decisions=(snapshot.clocks.decisions - before.clocks.decisions) / elapsed,
            samples=(snapshot.samples - before.samples) / elapsed,
            optimizer_steps=(snapshot.clocks.optimizer_steps - before.clocks.optimizer_steps) / elapsed,
        )


def pace_setter(snapshot: RunSnapshot) -> str | None:
    """Name the part that limits the run; None while the shares are unknown.

    A learner that waits for more than a quarter of its time lacks experience. Then, if env workers wait for actions
    most of their time, inference is the limit; otherwise simulation is.
    """
    learner, envs = snapshot.learner_wait_fraction, snapshot.env_wait_fraction
    if learner is None or envs is None:
        return None
    if learner <= 0.25:
        return "the learner sets the pace"
    return "inference sets the pace" if envs > 0.5 else "simulation sets the pace"
