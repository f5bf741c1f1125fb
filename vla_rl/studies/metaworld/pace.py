"""How long a grid takes: before it begins from measured rates, while it runs from what its own runs took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vla_rl.studies.metaworld.grid import Grid, StudyRun

START_S, ENV_STEPS_PER_S, SAMPLES_PER_S = 8.0, 900.0, 21_000.0  # of one of two runs at once, two virtual cores


@dataclass(frozen=True, slots=True)
class Expected:
    """Seconds of one run on one core of a 2-core cloud machine with both cores at work; others differ by a factor."""

    start: float  # imports and warm-up: until the first update
    training: float  # all updates, with the env steps that they need

    @property
    def seconds(self) -> float:
        """From start to end."""
        return self.start + self.training

    def done(self, share: float) -> float:
        """Seconds of which this share of the updates is the end; none before the first."""
        return self.start + share * self.training if share > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Underway:
    """A run as far as it has come."""

    expected: Expected
    seconds: float  # since its start
    share: float  # of its updates


def expect(grid: Grid, run: StudyRun) -> Expected:
    """What a run of the grid takes; a fresh one several times as long as a stale one, for its env steps."""
    recipe = grid.recipe_of(run)
    segments = recipe.budget.optimizer_steps * recipe.learner.micro_batch * recipe.learner.accumulation
    consumed = segments * recipe.replay.segment_length
    return Expected(
        start=START_S + recipe.replay.min_decisions / ENV_STEPS_PER_S,
        training=consumed / recipe.replay.replay_ratio / ENV_STEPS_PER_S + consumed / SAMPLES_PER_S,
    )


def estimate(grid: Grid, *, jobs: int) -> str:
    """One line: how many runs, and about how long they take."""
    seconds = sum(expect(grid, run).seconds for run in grid.runs())
    hours = seconds / jobs / 3600
    return f"{len(grid.runs())} runs, {jobs} at once: about {hours:.1f} h ({seconds / 3600:.1f} core hours)"


def minutes_left(
    ended: Iterable[Underway], running: Sequence[Underway], waiting: Sequence[Expected], *, jobs: int
) -> float:
    """Until the last run ends, at the pace of this machine: what runs took over what was expected of them.

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
