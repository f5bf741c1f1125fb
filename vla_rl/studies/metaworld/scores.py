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
    mcnemar,
    probability_of_improvement,
    unless_point,
)
from vla_rl.studies.bands import RESAMPLES
from vla_rl.studies.metaworld.results import RunResult, labels, paired_returns, select

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
    pairs: int  # of equal seed and task, also of seeds that lack one of the tasks: the sign test is of all of them
    higher: int  # pairs in which the first ends higher
    lower: int
    sign_p: float  # exact sign test of these pairs, two-sided, as if all were independent
    sign_p_by_seed: float  # the same where the pairs of one seed, which share their first weights, count as one


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


def tasks_of(results: Sequence[RunResult], *, surrogate: str, regime: str) -> tuple[str, ...]:
    """Return the tasks on which a surrogate has a run in a regime, in the order of all results."""
    own = set(labels(select(results, surrogate=surrogate, regime=regime), lambda run: run.task))
    return tuple(task for task in labels(results, lambda run: run.task) if task in own)


def complete_seeds(results: Sequence[RunResult], *, surrogate: str, regime: str, tasks: Sequence[str]) -> list[int]:
    """Return the seeds with which a surrogate has a run on every one of some tasks, in ascending order."""
    runs = {(result.run.seed, result.run.task) for result in select(results, surrogate=surrogate, regime=regime)}
    return [seed for seed in sorted({seed for seed, _ in runs}) if all((seed, task) in runs for task in tasks)]


def score_table(
    results: Sequence[RunResult],
    *,
    surrogate: str,
    regime: str,
    tasks: Sequence[str],
    random_returns: Mapping[str, float],
    seeds: Sequence[int] | None = None,
) -> Float64Array | None:
    """Return (seeds, tasks) normalised closing returns of one surrogate in one regime.

    Args:
        results: runs.
        surrogate: its label.
        regime: its name.
        tasks: columns, in this order.
        random_returns: returns of random actions, by task.
        seeds: rows, in this order, each with a run on every task; None: all such seeds.

    Returns:
        The table; None if it is empty.
    """
    rows = complete_seeds(results, surrogate=surrogate, regime=regime, tasks=tasks) if seeds is None else seeds
    values = {
        (result.run.seed, result.run.task): normalized(
            result.closing_return, random_return=random_returns[result.run.task]
        )
        for result in select(results, surrogate=surrogate, regime=regime)
    }
    return np.array([[values[seed, task] for task in tasks] for seed in rows]) if rows and tasks else None


def scores(results: Sequence[RunResult], random_returns: Mapping[str, float]) -> list[Score]:
    """Return IQM and intervals by regime, and in a regime by the tasks that they are of; the best is first.

    Only scores of the same tasks can be compared. If the surrogates of a regime have different tasks, there are scores
    for every set of tasks that some surrogate has, the largest first, of all surrogates that have these tasks.
    """
    found: list[Score] = []
    for regime in labels(results, lambda run: run.regime):
        own = {
            surrogate: tasks_of(results, surrogate=surrogate, regime=regime)
            for surrogate in labels(results, lambda run: run.surrogate)
        }
        for tasks in sorted({tasks: None for tasks in own.values() if tasks}, key=len, reverse=True):
            tables = {
                surrogate: score_table(
                    results, surrogate=surrogate, regime=regime, tasks=tasks, random_returns=random_returns
                )
                for surrogate, of_surrogate in own.items()
                if set(tasks) <= set(of_surrogate)
            }
            of_tasks = [
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
                for surrogate, table in tables.items()
                if table is not None
            ]
            found += sorted(of_tasks, key=lambda score: -score.iqm)
    return found


def task_sets(scores: Sequence[Score], regime: str) -> list[tuple[str, ...]]:
    """Return the sets of tasks that a regime has scores of, in the order of the scores."""
    return list(dict.fromkeys(score.tasks for score in scores if score.regime == regime))


def improvements(results: Sequence[RunResult], random_returns: Mapping[str, float]) -> list[Improvement]:
    """Compare every pair of surrogates once, on the tasks that both have; the first is the earlier in the grid.

    A pair without a task in common, or of which one has no seed with all common tasks, is left out.
    """
    found: list[Improvement] = []
    for regime in labels(results, lambda run: run.regime):
        for first, second in combinations(labels(results, lambda run: run.surrogate), 2):
            theirs = tasks_of(results, surrogate=second, regime=regime)
            tasks = tuple(task for task in tasks_of(results, surrogate=first, regime=regime) if task in theirs)
            one, other = (
                score_table(results, surrogate=surrogate, regime=regime, tasks=tasks, random_returns=random_returns)
                for surrogate in (first, second)
            )
            if one is not None and other is not None:
                found.append(
                    Improvement(
                        regime,
                        first,
                        second,
                        tasks,
                        (len(one), len(other)),
                        probability_of_improvement(one, other),
                        unless_point(improvement_interval(one, other, resamples=RESAMPLES)),
                        *_sign_test(results, regime=regime, first=first, second=second),
                    )
                )
    return found


def _sign_test(
    results: Sequence[RunResult], *, regime: str, first: str, second: str
) -> tuple[int, int, int, float, float]:
    """Return the number of pairs, those in which the first ends higher and lower, and exact p-values of their signs."""
    pairs = paired_returns(results, regime=regime, first=first, second=second)
    higher, lower = [ours > theirs for _, ours, theirs in pairs], [ours < theirs for _, ours, theirs in pairs]
    test, by_seed = mcnemar(higher, lower), mcnemar(higher, lower, clusters=[seed for seed, _, _ in pairs])
    return len(pairs), test.only_first, test.only_second, test.p_exact, by_seed.p_exact
