"""Duration of a grid: estimated from measured rates before it starts, and from its own runs while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vla_rl.studies.metaworld.grid import Grid, StudyRun

START_S, ENV_STEPS_PER_S, SAMPLES_PER_S = 8.0, 900.0, 21_000.0  # one of two parallel runs on two virtual cores


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected seconds of one run on one core of a busy 2-core cloud machine; other machines differ by a factor."""

    start: float  # imports and warm-up: until the first update
    training: float  # all updates, with the env steps that they need

    @property
    def seconds(self) -> float:
        """Return the seconds from start to end."""
        return self.start + self.training

    def done(self, share: float) -> float:
        """Return the seconds after which this share of the updates is done; 0 for no updates."""
        return self.start + share * self.training if share > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Underway:
    """Progress of a running run."""

    expected: Expected
    seconds: float  # since its start
    share: float  # share of its updates


def expect(grid: Grid, run: StudyRun) -> Expected:
    """Return the expected time of a run; a fresh one takes several times as long as a stale one, for its env steps."""
    recipe = grid.recipe_of(run)
    segments = recipe.budget.optimizer_steps * recipe.learner.batch_segments
    consumed = segments * recipe.replay.segment_length
    return Expected(
        start=START_S + recipe.replay.min_decisions / ENV_STEPS_PER_S,
        training=consumed / recipe.replay.replay_ratio / ENV_STEPS_PER_S + consumed / SAMPLES_PER_S,
    )


def estimate(grid: Grid, *, jobs: int) -> str:
    """Return one line with the number of runs and their estimated duration."""
    seconds = sum(expect(grid, run).seconds for run in grid.runs())
    hours = seconds / jobs / 3600
    return f"{len(grid.runs())} runs, {jobs} at once: about {hours:.1f} h ({seconds / 3600:.1f} core hours)"


def minutes_left(
    ended: Iterable[Underway], running: Sequence[Underway], waiting: Sequence[Expected], *, jobs: int
) -> float:
    """Return the minutes until the last run ends, from this machine's ratio of measured to expected time.

    Args:
        ended: runs that finished in this call, with a share of 1.
        running: those that run now.
        waiting: those that have not begun.
        jobs: runs at once.
    """
    told = [each for each in (*ended, *running) if each.share > 0]
    expected = sum(each.expected.done(each.share) for each in told)
    pace = sum(each.seconds for each in told) / expected if expected > 0 else 1.0
    left = [each.expected.seconds - each.expected.done(each.share) for each in running]
    left += [each.seconds for each in waiting]
    return pace * max(sum(left) / jobs, max(left, default=0.0)) / 60
