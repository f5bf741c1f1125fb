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

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Baseline = Literal["mean_std", "mean", "leave_one_out"]
Float64Array = NDArray[np.float64]
MAX_FLOAT_ID = 2.0**53  # from here on floats skip integers
MAX_SCORE = 1e300  # differences and sums of such scores are finite numbers


def group_advantages(
    scores: ArrayLike, group_ids: ArrayLike, *, baseline: Baseline = "mean_std", eps: float = 1e-6
) -> Float64Array:
    """Return the advantage of every episode in its group.

    Args:
        scores: (N,) float64, R_i, at most 1e300 in size.
        group_ids: (N,) integers, strings, or floats below 2**53, all of one type; members of a group need not be
            adjacent.
        baseline: what a score is compared with; see the module.
        eps: ε, added to the standard deviation of `mean_std`; no effect otherwise.

    Returns:
        (N,) float64.

    Raises:
        ValueError: the shapes differ, a score is no number, not finite or too large, a group has a single member, ids
            are of several types or too large for theirs, the baseline is unknown, or eps is negative or not finite.
    """
    if not 0.0 <= eps < np.inf:
        raise ValueError(f"eps: found {eps}; it must be 0 or more, and finite")
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
            deviations = np.sqrt(np.bincount(members, weights=centred**2) / (sizes - 1))
            # Without ε the scale cancels, and what is left of it out: products with the smallest floats round to 0.
            dividends, divisors = (centred, deviations) if eps == 0.0 else (advantages, deviations * spread + eps)
            return np.divide(dividends, divisors[members], out=np.zeros_like(advantages), where=is_mixed[members])
    raise ValueError(f"baseline: found {baseline!r}, allowed are {', '.join(get_args(Baseline))}")


def keep_groups(scores: ArrayLike, group_ids: ArrayLike, *, low: float, high: float) -> NDArray[np.bool_]:
    """Return which episodes belong to a group whose mean score lies in [low, high], both ends included.

    A mean that misses an end only by the rounding of its scores counts as equal to it: ten scores of 0.1 add up to
    0.9999999999999999, and their mean is 0.1. With scores of 0 and 1 and bounds of 0.1 and 0.9, groups of eight are
    dropped if all fail or all succeed.

    Args:
        scores: (N,) float64, as in `group_advantages`; with single precision, its rounding is allowed for.
        group_ids: (N,), as in `group_advantages`.
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
    given = np.asarray(scores).dtype
    epsilon = np.finfo(given if given.kind == "f" else np.float64).eps
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
    values, ids = _numbers(scores), _ids(group_ids)
    if values.ndim != 1 or values.shape != ids.shape:
        raise ValueError(f"scores and group_ids: both must be (N,), found {values.shape} and {ids.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"scores: found {int((~np.isfinite(values)).sum())} that are not finite")
    if (np.abs(values) > MAX_SCORE).any():
        raise ValueError(
            f"scores: found {values[np.abs(values) > MAX_SCORE][0]:g}; at most {MAX_SCORE:g} in size can be compared"
        )
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


def _numbers(scores: ArrayLike) -> Float64Array:
    try:
        return np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # torch refuses tensors that require grad
        raise ValueError(f"scores: must be (N,) numbers ({error})") from error


def _ids(group_ids: ArrayLike) -> NDArray[Any]:
    """Return ids as an array whose elements can be ordered and compared.

    A list of several types would become an array of strings, in which 1 and "1" are one group, or one of objects that
    have no order.
    """
    try:
        ids = np.asarray(group_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"group_ids: must be (N,) ids ({error})") from error
    if ids.dtype.kind in "iuf":
        return ids
    given: Sequence[object] = group_ids if isinstance(group_ids, (list, tuple)) else ids.ravel().tolist()
    are_large_integers = ids.dtype.kind == "O" and all(isinstance(each, int | np.integer) for each in given)
    if not are_large_integers and not all(isinstance(each, str) for each in given):
        found = ", ".join(sorted({type(each).__name__ for each in given}))
        raise ValueError(f"group_ids: found {found}; pass integers, or strings, but not both")
    return ids
