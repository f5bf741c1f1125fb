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
        ValueError: the shapes differ, a score is not finite, a group has a single member, or the baseline is unknown.
    """
    values, members, sizes = _grouped(scores, group_ids)
    means = np.bincount(members, weights=values) / sizes
    low, high = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
    np.minimum.at(low, members, values)
    np.maximum.at(high, members, values)
    mixed = (low < high)[members]  # rounding of a mean must not become an advantage
    centred = np.where(mixed, values - means[members], 0.0)
    match baseline:
        case "mean":
            return centred
        case "leave_one_out":
            return centred * (sizes / (sizes - 1))[members]
        case "mean_std":
            deviations = np.sqrt(np.bincount(members, weights=centred**2) / (sizes - 1))
            return np.divide(centred, (deviations + eps)[members], out=np.zeros_like(centred), where=mixed)
    raise ValueError(f"baseline: found {baseline!r}, allowed are {', '.join(get_args(Baseline))}")


def keep_groups(scores: ArrayLike, group_ids: ArrayLike, *, low: float, high: float) -> NDArray[np.bool_]:
    """Return which episodes belong to a group whose mean score lies in [low, high], both ends included.

    With scores of 0 and 1 and bounds of 0.1 and 0.9, groups of eight are dropped if all fail or all succeed.

    Args:
        scores: (N,) float64.
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
    values, members, sizes = _grouped(scores, group_ids)
    means = np.bincount(members, weights=values) / sizes
    kept: NDArray[np.bool_] = ((means >= low) & (means <= high))[members]
    return kept


def _grouped(scores: ArrayLike, group_ids: ArrayLike) -> tuple[Float64Array, NDArray[np.intp], NDArray[np.intp]]:
    """Return scores (N,), the position of each episode's group (N,), and the sizes of the groups (G,)."""
    values, ids = np.asarray(scores, dtype=np.float64), np.asarray(group_ids)
    if values.ndim != 1 or values.shape != ids.shape:
        raise ValueError(f"scores and group_ids: both must be (N,), found {values.shape} and {ids.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"scores: found {int((~np.isfinite(values)).sum())} that are not finite")
    names, members, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    alone = names[sizes == 1]
    if len(alone):
        raise ValueError(
            f"group_ids: {', '.join(map(str, alone[:8].tolist()))} {'has' if len(alone) == 1 else 'have'} one member; "
            "a group needs two or more, or there is nothing to compare a score with"
        )
    return values, members, sizes
