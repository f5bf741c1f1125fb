"""Normalised scores of a Meta-World study: interquartile means, pairwise improvements, random actions as zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    """Normalised score of one surrogate in one regime, over tasks and seeds."""

    regime: str
    surrogate: str
    iqm: float
    interval: Interval | None  # None: redrawing seeds changes nothing
    mean: float
    seeds: int  # per task, those that all tasks have
    tasks: int


@dataclass(frozen=True, slots=True)
class Improvement:
    """Probability that a run of the first surrogate ends higher than one of the second."""

    regime: str
    first: str
    second: str
    probability: float
    interval: Interval | None  # None: redrawing seeds changes nothing, as where every run is above every other
    higher: int  # pairs of equal seed and task in which the first ends higher
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


def score_table(
    results: Sequence[RunResult], *, surrogate: str, regime: str, random_returns: Mapping[str, float]
) -> Float64Array | None:
    """Return (seeds, tasks) normalised closing returns, of the seeds that every task has; None if there is none."""
    chosen = select(results, surrogate=surrogate, regime=regime)
    tasks = labels(results, lambda run: run.task)
    scores = {
        (result.run.seed, result.run.task): normalized(
            result.closing_return, random_return=random_returns[result.run.task]
        )
        for result in chosen
    }
    seeds = [seed for seed in sorted({seed for seed, _ in scores}) if all((seed, task) in scores for task in tasks)]
    return np.array([[scores[seed, task] for task in tasks] for seed in seeds]) if seeds else None


def scores(results: Sequence[RunResult], random_returns: Mapping[str, float]) -> list[Score]:
    """Return IQM and interval of every surrogate in every regime, best first within its regime."""
    found: list[Score] = []
    for regime in labels(results, lambda run: run.regime):
        of_regime: list[Score] = []
        for surrogate in labels(results, lambda run: run.surrogate):
            table = score_table(results, surrogate=surrogate, regime=regime, random_returns=random_returns)
            if table is not None:
                interval = unless_point(iqm_interval(table, resamples=RESAMPLES))
                score = interquartile_mean(table)
                of_regime.append(Score(regime, surrogate, score, interval, float(table.mean()), *table.shape))
        found += sorted(of_regime, key=lambda score: -score.iqm)
    return found


def improvements(results: Sequence[RunResult], random_returns: Mapping[str, float]) -> list[Improvement]:
    """Compare every pair of surrogates once, the first being the earlier in the grid."""
    found: list[Improvement] = []
    surrogates = labels(results, lambda run: run.surrogate)
    for regime in labels(results, lambda run: run.regime):
        tables = {
            surrogate: score_table(results, surrogate=surrogate, regime=regime, random_returns=random_returns)
            for surrogate in surrogates
        }
        there = [(surrogate, table) for surrogate, table in tables.items() if table is not None]
        found += [
            Improvement(
                regime,
                first,
                second,
                probability_of_improvement(ours, theirs),
                unless_point(improvement_interval(ours, theirs, resamples=RESAMPLES)),
                *_sign_test(results, regime=regime, first=first, second=second),
            )
            for index, (first, ours) in enumerate(there)
            for second, theirs in there[index + 1 :]
        ]
    return found


def _sign_test(results: Sequence[RunResult], *, regime: str, first: str, second: str) -> tuple[int, int, float, float]:
    """Return the pairs in which the first ends higher and lower, and exact p-values, as in McNemar's test of signs."""
    pairs = paired_returns(results, regime=regime, first=first, second=second)
    higher, lower = [ours > theirs for _, ours, theirs in pairs], [ours < theirs for _, ours, theirs in pairs]
    test, by_seed = mcnemar(higher, lower), mcnemar(higher, lower, clusters=[seed for seed, _, _ in pairs])
    return test.only_first, test.only_second, test.p_exact, by_seed.p_exact
