"""Exact sign test of runs in pairs, for returns and for what it takes to solve a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla_rl.evaluation.statistics import mcnemar


@dataclass(frozen=True, slots=True)
class SignTest:
    """Two-sided test of whether the first of a pair is as often higher as lower."""

    pairs: int
    higher: int  # pairs in which the first is higher
    lower: int
    p: float  # as if all pairs were independent
    p_by_seed: float  # where the pairs of one seed, which share their first weights, count as one


def paired_sign_test(pairs: Sequence[tuple[int, float, float]]) -> SignTest:
    """Test pairs of runs, given as seed, value of the first and value of the second; ties say nothing."""
    higher, lower = [first > second for _, first, second in pairs], [first < second for _, first, second in pairs]
    test, by_seed = mcnemar(higher, lower), mcnemar(higher, lower, clusters=[seed for seed, _, _ in pairs])
    return SignTest(len(pairs), test.only_first, test.only_second, test.p_exact, by_seed.p_exact)
