"""Normalised scores of a Meta-World study: interquartile means, pairwise improvements, random actions as zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.metaworld.env import ACTION_DIM, HORIZON, MetaworldEnv
from vla_rl.envs.metaworld.tasks import METAWORLD_TASKS
from vla_rl.evaluation.statistics import (
    Interval,
    improvement_interval,
    interquartile_mean,
    iqm_interval,
    probability_of_improvement,
    unless_point,
)
from vla_rl.studies.bands import RESAMPLES
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.metaworld.sign_test import SignTest, paired_sign_test
from vla_rl.studies.metaworld.solving import solving_test

MAX_RETURN = 5000.0  # 10 in each of 500 control steps, which no policy can reach
RANDOM_EPISODES = 20

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """Normalised score of one surrogate in one regime, over some of its tasks and the seeds that it has on each."""

    regime: str
    surrogate: str
    iqm: float
    interval: Interval | None  # seeds redrawn within each task; None: that changes nothing
    interval_by_seed: Interval | None  # seeds redrawn with all their tasks
    mean: float
    seeds: int  # per task, those that all these tasks have
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Improvement:
    """Probability that a run of the first surrogate ends higher than one of the second, on the tasks that both have."""

    regime: str
    first: str
    second: str
    tasks: tuple[str, ...]
    seeds: tuple[int, int]  # of the first and the second that have all these tasks: the probability is of their runs
    probability: float
    interval: Interval | None  # None: redrawing seeds changes nothing, as where every run is above every other
    interval_by_seed: Interval | None  # seeds redrawn with the runs of both on all tasks; None also if theirs differ
    test: SignTest  # of the returns of all pairs of equal seed and task, also of seeds that lack one of the tasks
    solving: SignTest  # of the env steps until these pairs have solved their task


def random_return(task: str, *, episodes: int = RANDOM_EPISODES) -> float:
    """Return the mean return of uniform actions in [-1, 1] over initial states 0 .. episodes - 1, benchmark units."""
    env = MetaworldEnv(task, task_id=METAWORLD_TASKS.index(task), horizon=HORIZON, chunk_size=HORIZON)
    generator = np.random.default_rng(0)
    returns = []
    for init_state in range(episodes):
        env.reset(init_state)
        actions = generator.uniform(-1.0, 1.0, (HORIZON, ACTION_DIM)).astype(np.float32)
        returns.append(env.step_chunk(actions).reward)
    env.close()
    return float(np.mean(returns))


def normalized(value: float, *, random_return: float) -> float:
    """Normalise a return: 0 for uniformly random actions, 1 for `MAX_RETURN`."""
    return (value - random_return) / (MAX_RETURN - random_return)


def complete_seeds(results: RunTable, tasks: Sequence[str]) -> list[int]:
    """Return the seeds that have a run on every one of some tasks, in ascending order."""
    runs = {(result.run.seed, result.run.task) for result in results}
    return [seed for seed in sorted({seed for seed, _ in runs}) if all((seed, task) in runs for task in tasks)]


def score_table(
    results: RunTable, *, seeds: Sequence[int], tasks: Sequence[str], random_returns: Mapping[str, float]
) -> Float64Array | None:
    """Return (seeds, tasks) normalised closing returns of the runs of one surrogate in one regime. None if it is empty.

    Args:
        results: runs.
        seeds: rows, in this order, each with a run on every task.
        tasks: columns, in this order.
        random_returns: returns of random actions, by task.
    """
    values = {
        (result.run.seed, result.run.task): normalized(
            result.closing_return, random_return=random_returns[result.run.task]
        )
        for result in results
    }
    return np.array([[values[seed, task] for task in tasks] for seed in seeds]) if seeds and tasks else None


def scores(results: RunTable, random_returns: Mapping[str, float]) -> list[Score]:
    """Return IQM and intervals by regime, and in a regime by the tasks that they are of; the best is first.

    Only scores of the same tasks can be compared. If the surrogates of a regime have different tasks, there are scores
    for every set of tasks that some surrogate has, the largest first, of all surrogates that have these tasks.
    """
    found: list[Score] = []
    for regime in results.regimes:
        own = results.by_surrogate(regime)
        sets = dict.fromkeys(results.tasks_of(surrogate, regime) for surrogate in own)
        for tasks in sorted(sets, key=len, reverse=True):
            of_tasks = []
            for surrogate, runs in own.items():
                seeds = complete_seeds(runs, tasks)
                table = score_table(runs, seeds=seeds, tasks=tasks, random_returns=random_returns)
                if table is not None:
                    of_tasks.append(
                        Score(
                            regime,
                            surrogate,
                            interquartile_mean(table),
                            unless_point(iqm_interval(table, resamples=RESAMPLES)),
                            unless_point(iqm_interval(table, resamples=RESAMPLES, whole_seeds=True)),
                            float(table.mean()),
                            len(table),
                            tasks,
                        )
                    )
            found += sorted(of_tasks, key=lambda score: -score.iqm)
    return found


def task_sets(scores: Sequence[Score], regime: str) -> list[tuple[str, ...]]:
    """Return the sets of tasks that a regime has scores of, in the order of the scores."""
    return list(dict.fromkeys(score.tasks for score in scores if score.regime == regime))


def improvements(results: RunTable, random_returns: Mapping[str, float]) -> list[Improvement]:
    """Compare every pair of surrogates once, on the tasks that both have; the first is the earlier in the grid.

    A pair without a task in common, or of which one has no seed with all common tasks, is left out.
    """
    found: list[Improvement] = []
    for regime in results.regimes:
        for (first, ours), (second, theirs) in combinations(results.by_surrogate(regime).items(), 2):
            tasks = tuple(task for task in results.tasks if task in ours.tasks and task in theirs.tasks)
            seeds = [complete_seeds(runs, tasks) for runs in (ours, theirs)]
            one, other = (
                score_table(runs, seeds=its, tasks=tasks, random_returns=random_returns)
                for runs, its in zip((ours, theirs), seeds, strict=True)
            )
            if one is not None and other is not None:
                of_regime, equal = results.where(regime=regime), seeds[0] == seeds[1]
                whole = improvement_interval(one, other, resamples=RESAMPLES, whole_seeds=True) if equal else None
                found.append(
                    Improvement(
                        regime,
                        first,
                        second,
                        tasks,
                        (len(one), len(other)),
                        probability_of_improvement(one, other),
                        unless_point(improvement_interval(one, other, resamples=RESAMPLES)),
                        None if whole is None else unless_point(whole),
                        paired_sign_test(of_regime.pairs(first, second, lambda run: run.closing_return)),
                        solving_test(of_regime, first, second),
                    )
                )
    return found
