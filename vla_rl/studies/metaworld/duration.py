"""Duration of a Meta-World grid before it starts, from measured rates."""

from __future__ import annotations

from vla_rl.studies.metaworld.grid import Grid, StudyRun
from vla_rl.studies.pace import Expected

START_S, ENV_STEPS_PER_S, SAMPLES_PER_S = 8.0, 900.0, 21_000.0  # one of two parallel runs on two virtual cores


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
