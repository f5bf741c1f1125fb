"""The credit of groups: by hand, its choice of members, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vla_rl.credit import Experience, Group, GroupNeeds

BASELINES = ("mean_std", "mean", "leave_one_out")


def make(**fields: Any) -> Group:
    return Group.model_validate({"name": "group", **fields})


def experience(
    rewards: list[list[float]], *, episode: list[int], group: list[int], lengths: list[int] | None = None
) -> Experience:
    """Segments with these rewards; what lies beyond a segment's length is padding and holds NaN."""
    table = torch.tensor(rewards, dtype=torch.float64)
    length = torch.tensor(lengths or [table.shape[1]] * len(table))
    mask = torch.arange(table.shape[1]) < length[:, None]
    nothing = torch.zeros_like(mask)
    return Experience(
        rewards=table.where(mask, math.nan),
        terminated=nothing,
        truncated=nothing,
        values=torch.full((table.shape[0], table.shape[1] + 1), math.nan),
        log_ratios=torch.full_like(table, math.nan),
        mask=mask,
        episode=torch.tensor(episode),
        group=torch.tensor(group),
    )


def test_three_successes_of_eight_by_hand() -> None:
    """μ = 3/8, σ = sqrt(15 / 56): successes get (5/8) / σ, failures −(3/8) / σ, in all decisions of an episode."""
    rewards = [[0.0, 1.0]] * 3 + [[0.0, 0.0]] * 5
    given = experience(rewards, episode=[*range(8)], group=[5] * 8)
    advantages = make(eps=1e-6).assign(given).advantages
    deviation = math.sqrt(15 / 56) + 1e-6
    assert advantages.dtype == torch.float64
    assert advantages[:3].flatten().tolist() == pytest.approx([5 / 8 / deviation] * 6, abs=1e-9)
    assert advantages[3:].flatten().tolist() == pytest.approx([-3 / 8 / deviation] * 10, abs=1e-9)


def test_the_segments_of_an_episode_make_one_score() -> None:
    """Episode 7 earns 1 + 2 + 4 in two segments, episode 9 earns 3: ±2 about the mean of 5. Padding holds NaN."""
    rewards = [[1.0, 2.0], [3.0, 0.0], [4.0, 9.0]]
    given = experience(rewards, episode=[7, 9, 7], group=[1, 1, 1], lengths=[2, 1, 1])
    assert make(size=2, baseline="mean").assign(given).advantages.tolist() == [[2.0, 2.0], [-2.0, -2.0], [2.0, 2.0]]
    assert make(size=2, baseline="leave_one_out").assign(given).advantages[:, 0].tolist() == [4.0, -4.0, 4.0]


def test_groups_do_not_touch_each_other() -> None:
    given = experience([[1.0], [10.0], [3.0], [30.0]], episode=[0, 1, 2, 3], group=[4, 2, 4, 2])
    assert make(size=2, baseline="mean").assign(given).advantages.flatten().tolist() == [-1.0, -10.0, 1.0, 10.0]


@pytest.mark.parametrize(
    ("episode", "group", "said"),
    [
        ([0, 1, 2], [1, 1, 2], r"whole groups of 2 episodes; found groups of \[1, 2\]"),
        ([0, 0, 1], [1, 1, 2], r"found groups of \[1\]"),
        ([0, 1, 2], [1, 1, 1], r"found groups of \[3\]"),
        ([0, 1, 2], [1, 1, 0], r"found groups of \[1, 2\], and episodes without a group"),
        ([0, 1, 1], [0, 0, 0], r"and episodes without a group"),
    ],
)
def test_a_group_that_is_not_whole_is_refused(episode: list[int], group: list[int], said: str) -> None:
    """A member alone would get its bare score, which is REINFORCE in disguise."""
    with pytest.raises(ValueError, match=said):
        make(size=2).assign(experience([[1.0], [0.0], [0.0]], episode=episode, group=group))


def test_what_it_asks_of_the_program() -> None:
    credit = make(size=4, uses=3, max_rejected=7)
    assert (credit.needs_values, credit.needs_current_values, credit.needs_log_ratios) == (False, False, False)
    assert credit.groups == GroupNeeds(size=4, candidates=4, max_uses=3, max_rejected=7)
    assert make(size=4, oversample="balanced", candidates=6).groups.candidates == 6
    assert credit.horizon == "end"


def test_both_bounds_of_keep_are_included() -> None:
    credit = make(size=4, keep=[0.25, 0.75])
    chosen = [credit.choose(np.array([1.0] * wins + [0.0] * (4 - wins))) for wins in range(5)]
    assert [None if it is None else it.tolist() for it in chosen] == [
        None,
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        None,
    ]
    everything = make(size=4, keep=None).choose(np.ones(4))
    assert everything is not None
    assert everything.tolist() == [0, 1, 2, 3]


def test_a_bound_of_keep_is_met_within_the_precision_of_rewards() -> None:
    credit = make(size=2, keep=[0.1, 0.3])
    low, high = float(np.float32(0.05)), float(np.float32(0.15))  # as rewards are stored; their mean is 0.10000000149
    for scores in ([low, high], [2 * high, 2 * high]):
        assert credit.choose(np.array(scores)) is not None
    ten = make(size=10, keep=[0.1, 0.9])
    assert ten.choose(np.full(10, 0.1)) is not None  # which add up to 0.9999999999999999
    assert ten.choose(np.array([0.0] * 9 + [0.999])) is None


def test_balanced_takes_the_members_whose_mean_is_nearest_the_middle() -> None:
    """Of one success among six, a pair with it has the mean ½; of 0, 0.3, 0.9 the pair 0, 0.9 has 0.45, next to 0.5."""
    credit = make(size=2, oversample="balanced", candidates=6)
    chosen = credit.choose(np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0]))
    assert chosen is not None
    assert chosen.tolist() == [0, 3]
    few = make(size=2, oversample="balanced", candidates=3).choose(np.array([0.0, 0.3, 0.9]))
    assert few is not None
    assert few.tolist() == [0, 2]
    assert credit.choose(np.ones(6)) is None
    shifted = make(size=2, oversample="balanced", candidates=3, keep=[0.0, 0.3]).choose(np.array([0.0, 0.3, 0.9]))
    assert shifted is not None
    assert shifted.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": 1}, "greater than or equal to 2"),
        ({"keep": [0.9, 0.1]}, "the least mean comes first"),
        ({"candidates": 16}, "is for oversample"),
        ({"oversample": "balanced"}, "oversample chooses from them"),
        ({"oversample": "balanced", "candidates": 8}, "oversample chooses from them"),
        ({"oversample": "balanced", "candidates": 12, "keep": None}, "needs the middle"),
        ({"oversample": "balanced", "candidates": 100}, "at most 100,000 subsets"),
        ({"time_limit": "bootstrap"}, "no critic can stand for what would follow"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=said):
        make(**fields)
