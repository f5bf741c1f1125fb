"""Advantages from groups of episodes with the same start: GRPO, Dr.GRPO and RLOO, without a critic.

A group has n members: episodes of one task from one initial state and one reset seed. R_i is an episode's score (its
return), μ the mean of its group, σ the group's standard deviation with n − 1 in the denominator. Every executed token
of episode i gets the advantage A_i:

    "mean_std"        A_i = (R_i − μ) / (σ + ε)      GRPO (arXiv 2402.03300); ε = 1e-6 as in SimpleVLA-RL and RLinf
    "mean"            A_i = R_i − μ                   Dr.GRPO (arXiv 2503.20783)
    "leave_one_out"   A_i = R_i − mean of the others  RLOO (arXiv 2402.14740), n / (n − 1) times Dr.GRPO

Advantages add up to 0 in each group, and a group of equal scores gives no signal: its advantages are 0. A group of one
member has no baseline and is refused, because its advantage would be its bare score.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Baseline = Literal["mean_std", "mean", "leave_one_out"]
Float64Array = NDArray[np.float64]
MAX_FLOAT_ID = 2.0**53  # from here on floats skip integers


def group_advantages(
    scores: ArrayLike, group_ids: ArrayLike, *, baseline: Baseline = "mean_std", eps: float = 1e-6
) -> Float64Array:
    """Return the advantage of every episode in its group.

    Args:
        scores: (N,) float64, R_i.
        group_ids: (N,) integers; members of a group need not be adjacent.
        baseline: what a score is compared with; see the module.
        eps: ε, added to the standard deviation of `mean_std`; no effect otherwise.

    Returns:
        (N,) float64.

    Raises:
        ValueError: the shapes differ, a score is not finite, a group has a single member, ids are too large for their
            type, the baseline is unknown, or eps is negative.
    """
    if not eps >= 0.0:
        raise ValueError(f"eps: found {eps}; it must be 0 or more")
    values, members, sizes = _grouped(scores, group_ids)
    low, high = _extremes(values, members, sizes)
    is_mixed = low < high
    spread = np.where(is_mixed, high - low, 1.0)
    # Scores are placed between 0 and 1 first: a large common level costs no digits, squares neither overflow nor
    # vanish, and equal scores become exactly 0, so that the rounding of a mean never becomes an advantage.
    placed = (values - low[members]) / spread[members]
    centred = placed - (np.bincount(members, weights=placed) / sizes)[members]
    advantages = centred * spread[members]
    match baseline:
        case "mean":
            return advantages
        case "leave_one_out":
            return advantages * (sizes / (sizes - 1))[members]
        case "mean_std":
            deviations = np.sqrt(np.bincount(members, weights=centred**2) / (sizes - 1)) * spread
            return np.divide(
                advantages, (deviations + eps)[members], out=np.zeros_like(advantages), where=is_mixed[members]
            )
    raise ValueError(f"baseline: found {baseline!r}, allowed are {', '.join(get_args(Baseline))}")


def keep_groups(scores: ArrayLike, group_ids: ArrayLike, *, low: float, high: float) -> NDArray[np.bool_]:
    """Return which episodes belong to a group whose mean score lies in [low, high], both ends included.

    A mean that misses an end only by the rounding of its scores counts as equal to it: ten scores of 0.1 add up to
    0.9999999999999999, and their mean is 0.1. With scores of 0 and 1 and bounds of 0.1 and 0.9, groups of eight are
    dropped if all fail or all succeed.

    Args:
        scores: (N,) float64; with single precision, its rounding is allowed for.
        group_ids: (N,) integers.
        low: the least mean that is kept.
        high: the largest mean that is kept.

    Returns:
        (N,) bool, equal for all members of a group.

    Raises:
        ValueError: as in `group_advantages`, or low is larger than high.
    """
    if not low <= high:
        raise ValueError(f"low and high: found {low} and {high}; low must not be larger than high")
    given = np.asarray(scores).dtype
    epsilon = np.finfo(given if given.kind == "f" else np.float64).eps
    values, members, sizes = _grouped(scores, group_ids)
    means = np.bincount(members, weights=values) / sizes
    largest = np.maximum(*np.abs(_extremes(values, members, sizes)))
    # The rounding of a score, and that of their sum, which is of double precision: 1,024 ones are above 0.9999.
    slack = (epsilon + sizes * np.finfo(np.float64).eps) * largest
    kept: NDArray[np.bool_] = ((means >= low - slack) & (means <= high + slack))[members]
    return kept


def _extremes(
    values: Float64Array, members: NDArray[np.intp], sizes: NDArray[np.intp]
) -> tuple[Float64Array, Float64Array]:
    """Return the lowest and the highest score of each group, (G,) each."""
    low, high = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
    np.minimum.at(low, members, values)
    np.maximum.at(high, members, values)
    return low, high


def _grouped(scores: ArrayLike, group_ids: ArrayLike) -> tuple[Float64Array, NDArray[np.intp], NDArray[np.intp]]:
    """Return scores (N,), the position of each episode's group (N,), and the sizes of the groups (G,)."""
    values, ids = np.asarray(scores, dtype=np.float64), np.asarray(group_ids)
    if values.ndim != 1 or values.shape != ids.shape:
        raise ValueError(f"scores and group_ids: both must be (N,), found {values.shape} and {ids.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"scores: found {int((~np.isfinite(values)).sum())} that are not finite")
    if ids.dtype.kind == "f" and not (np.abs(ids) < MAX_FLOAT_ID).all():
        raise ValueError(  # numpy turns a list of negative integers and ones above 2**63 into floats, which merges ids
            f"group_ids: found {ids[~(np.abs(ids) < MAX_FLOAT_ID)][0]} as a float, which cannot tell large ids apart; "
            "pass integers of one type, or strings"
        )
    names, members, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    alone = names[sizes == 1]
    if len(alone):
        raise ValueError(
            f"group_ids: {', '.join(map(str, alone[:8].tolist()))} {'has' if len(alone) == 1 else 'have'} one member; "
            "a group needs two or more, or there is nothing to compare a score with"
        )
    return values, members, sizes
