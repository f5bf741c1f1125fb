"""Comparison of two evaluations pair by pair: the same task, initial state and seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vla_rl.evaluation.episode_log import EpisodeKey, EpisodeResult
from vla_rl.evaluation.eval_results import group_by, rates_by_state
from vla_rl.evaluation.statistics import (
    CONFIDENCE,
    Interval,
    McNemar,
    mcnemar,
    stratified_mean_interval,
    unless_point,
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of two policies on the same episodes."""

    pairs: int
    unpaired: int  # episodes that only one of the two has; left out
    initial_states: int  # initial states of the pairs; fewer than pairs if several seeds play them
    first_rate: float  # success rate of the first on the pairs, mean over tasks and their initial states
    second_rate: float
    difference: float  # `first_rate` - `second_rate`
    interval: Interval | None  # of `difference`, initial states redrawn within tasks; None: the differences do not vary
    test: McNemar  # pairs of one initial state are a cluster
    pairs_per_task: tuple[int, int]  # the fewest and the most; `difference` weighs tasks alike, `test` weighs pairs

    @property
    def surprising(self) -> bool:
        """Return whether chance alone would rarely make two equally good policies differ in so many pairs."""
        return self.test.p_mid < 1 - CONFIDENCE

    @property
    def contradictory(self) -> bool:
        """Return whether the mean over tasks and the count of pairs favour different policies.

        Unequal tasks allow it.
        """
        counted = self.test.only_first - self.test.only_second
        return counted != 0 and round(self.difference, 9) * counted <= 0

    @property
    def distinguishable(self) -> bool:
        """Return whether one policy is better: by more than chance, and by either way of counting."""
        return self.surprising and not self.contradictory


def compare(first: Iterable[EpisodeResult], second: Iterable[EpisodeResult]) -> Comparison:
    """Compare two evaluations pair by pair: same suite, task, initial state and seed.

    Args:
        first: episodes of one evaluation.
        second: episodes of another.

    Raises:
        ValueError: they have no episode in common.
    """
    ours, theirs = ({episode.key: episode for episode in episodes} for episodes in (first, second))
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise ValueError("the evaluations share no episode (suite, task, initial state, seed): nothing can be paired")
    first_rates, second_rates = ([rates_by_state(task) for task in _by_task(own, shared)] for own in (ours, theirs))
    differences = [
        [mine - other for mine, other in zip(*task, strict=True)]
        for task in zip(first_rates, second_rates, strict=True)
    ]
    pairs_of_tasks = Counter(key[:2] for key in shared).values()
    return Comparison(
        pairs=len(shared),
        unpaired=len(ours.keys() ^ theirs.keys()),
        initial_states=sum(map(len, differences)),
        first_rate=_mean_of_means(first_rates),
        second_rate=_mean_of_means(second_rates),
        difference=_mean_of_means(differences),
        interval=unless_point(stratified_mean_interval(differences)),
        test=mcnemar(
            [ours[key].success for key in shared],
            [theirs[key].success for key in shared],
            clusters=[key[:4] for key in shared],
        ),
        pairs_per_task=(min(pairs_of_tasks), max(pairs_of_tasks)),
    )


def _by_task(
    episodes: Mapping[EpisodeKey, EpisodeResult], keys: Sequence[EpisodeKey]
) -> Iterable[Sequence[EpisodeResult]]:
    return group_by([episodes[key] for key in keys], lambda episode: episode.key[:2]).values()


def _mean_of_means(by_task: Sequence[Sequence[float]]) -> float:
    return sum(sum(task) / len(task) for task in by_task) / len(by_task)
