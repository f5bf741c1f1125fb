"""Studies for tests: what their runs have written, and results with other values."""

from dataclasses import replace

from vla_rl.studies.metaworld.grid import Grid
from vla_rl.studies.metaworld.results import RunTable, read_results
from vla_rl.studies.metaworld.scores import (
    improvements,
    scores,
)
from vla_rl.studies.metaworld.study import Study
from vla_rl.studies.metaworld.summary import parts

TASKS = ("door-open-v3", "push-v3")
GRID = Grid(tasks=TASKS, surrogates=("gipo:0.5", "gipo", "ppo"), regimes=("stale",), seeds=2, optimizer_steps=6000)
RANDOM = {"door-open-v3": 0.0, "push-v3": 0.0}


def record(step, *, scaled_return, ess):
    return {
        "optimizer_steps": step, "env_steps": 10 * step, "decisions": 10 * step, "episodes": step,
        "policy_version": step, "seconds": float(step), "rollout/return": scaled_return,
        "policy_lag/mean": 50.0, "policy_lag/p95": 95.0, "policy_lag/old_fraction": 0.9, "policy_lag/old_p95": 95.0,
        "ratio/abs_log_p95": 1.5,
        "utilization/ess_old": ess, "learner/kl": 0.1,
    }  # fmt: skip


def results_of(study):
    results, broken = read_results(study)
    assert broken == []
    return results


def words_of(study, **changes):
    return parts_of(study, **changes)[0].sentences


def parts_of(study, **changes):
    return parts(study_with(study, **changes))


def study_with(study, **changes):
    grid = {
        "planned": 12,
        "missing": [],
        "optimizer_steps": 6000,
        "recipe": "metaworld_stale",
        "random_returns": RANDOM,
        **changes,
    }
    results = changes.pop("results", None) or results_of(study)
    results = RunTable(results)
    computed = {"scores": scores(results, RANDOM), "improvements": improvements(results, RANDOM)}
    return Study(**grid | {"results": results, "broken": []} | computed | changes)


def end_with(result, value, **place):
    """The run at another place, with another closing return."""
    scaled = value * result.reward_scale
    return replace(
        result, run=replace(result.run, **place), records=[r | {"rollout/return": scaled} for r in result.records]
    )
