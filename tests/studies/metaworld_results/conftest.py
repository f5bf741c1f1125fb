"""Studies whose runs are written by hand."""

import pytest
from written_runs import write_run
from written_study import GRID, TASKS, end_with, record, results_of

from vla_rl.studies.metaworld import outputs as metaworld_outputs
from vla_rl.studies.metaworld.runner import open_study


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Every run ends with a return of 100 · (1 + seed), ten times that of the surrogate gipo, in both tasks."""
    monkeypatch.setattr(metaworld_outputs, "random_return", lambda _: 0.0)
    open_study(GRID, tmp_path)
    for run in GRID.runs():
        end = 0.01 * 100 * (1 + run.seed) * (10 if run.surrogate == "gipo" else 1)
        records = [record(step, scaled_return=0.0 if step < 80 else end, ess=step / 100) for step in range(10, 101, 10)]
        manifest = {"source": {"commit": "abc"}, "versions": {"torch": "2.13.0"}, "started": run.name}
        write_run(tmp_path / "runs" / run.name, run, grid=GRID, records=records, manifest=manifest)
    return tmp_path


@pytest.fixture
def merged(study):
    """Stale on two tasks: GIPO 1000 and 3000 with both seeds, PPO 500 and 500. Fresh on door-open alone, by seed:
    GIPO 1500 and 2500, PPO 2000 and 2000, and seed 2 of PPO."""
    one = results_of(study)[0]
    stale = [
        end_with(one, value, task=task, surrogate=surrogate, seed=seed)
        for surrogate, of_tasks in (("gipo", (1000.0, 3000.0)), ("ppo", (500.0, 500.0)))
        for task, value in zip(TASKS, of_tasks, strict=True)
        for seed in (0, 1)
    ]
    fresh = [
        end_with(one, value, task="door-open-v3", surrogate=surrogate, regime="fresh", seed=seed)
        for surrogate, by_seed in (("gipo", (1500.0, 2500.0)), ("ppo", (2000.0, 2000.0, 4500.0)))
        for seed, value in enumerate(by_seed)
    ]
    return [*stale, *fresh]
