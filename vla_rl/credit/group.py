"""Advantages from groups of episodes with the same start, without a critic."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from vla_rl.credit.base import Credit, Experience, GroupNeeds, Targets
from vla_rl.rl.groups import Baseline, Float64Array, group_advantages, keep_groups
from vla_rl.section import Positive, Problem, RulesError, Scale, TimeLimit

MAX_SUBSETS = 100_000  # of a group's candidates that `oversample` compares

Members = Annotated[int, Field(ge=2, le=1024)]
Score = Annotated[float, Field(ge=-1e12, le=1e12)]


class Group(Credit):
    """Group-relative advantages: GRPO, Dr.GRPO and RLOO.

    A group has `size` episodes with the same task, initial state and reset seed. An episode's score is its return, and
    all its executed tokens share one advantage (`vla_rl.rl.groups`).
    """

    needs_values: ClassVar[bool] = False

    name: Literal["group"]
    baseline: Baseline = Field(
        "mean_std", description="mean_std: GRPO; mean: Dr.GRPO, no division by the deviation; leave_one_out: RLOO"
    )
    size: Members = Field(8, description="episodes of a group")
    keep: Annotated[list[Score], Field(min_length=2, max_length=2)] | None = Field(
        [0.1, 0.9],
        description="range of mean scores, both ends included, of the groups that are learned from; null: all groups",
    )
    oversample: Literal["off", "balanced"] = Field(
        "off", description="balanced: of a group's candidates, take the ones with a mean nearest the middle of keep"
    )
    candidates: Members | None = Field(
        None, description="episodes played per group with oversample=balanced; more than size"
    )
    uses: Positive | None = Field(
        None, description="number of updates that use a group; null: until it leaves the ring"
    )
    max_rejected: Positive = Field(
        1024, description="the run ends after this many groups outside keep without an update"
    )
    eps: Scale = Field(1e-6, description="added to the deviation of mean_std")
    time_limit: TimeLimit | None = Field("end", description="end: a score is the return until the end of the episode")

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        problems = []
        if self.keep is not None and self.keep[0] > self.keep[1]:
            problems.append(Problem("keep", "the least mean comes first", str(self.keep), str(self.keep[::-1])))
        if self.oversample == "off" and self.candidates is not None:
            problems.append(
                Problem("candidates", "is for oversample", str(self.candidates), "null, or targets.oversample=balanced")
            )
        if self.oversample == "balanced":
            problems += self._problems_of_oversampling()
        if self.time_limit != "end":
            problems.append(
                Problem("time_limit", "no critic can stand for what would follow", str(self.time_limit), "end")
            )
        if problems:
            raise RulesError(problems)
        return self

    def _problems_of_oversampling(self) -> list[Problem]:
        problems = []
        if self.keep is None:
            problems.append(Problem("oversample", "needs the middle of targets.keep", "balanced with keep null", "off"))
        if self.candidates is None or self.candidates <= self.size:
            allowed = f"more than targets.size, which is {self.size}"
            problems.append(Problem("candidates", "oversample chooses from them", str(self.candidates), allowed))
        elif math.comb(self.candidates, self.size) > MAX_SUBSETS:
            found = f"{self.candidates} for targets.size {self.size}: {math.comb(self.candidates, self.size):,} subsets"
            problems.append(
                Problem("candidates", f"at most {MAX_SUBSETS:,} subsets are compared", found, "fewer candidates")
            )
        return problems

    @property
    def needs_current_values(self) -> bool:
        """Return False: there is no critic."""
        return False

    @property
    def groups(self) -> GroupNeeds:
        """Return the sizes and limits of its groups."""
        return GroupNeeds(self.size, self.candidates or self.size, self.uses, self.max_rejected)

    def choose(self, scores: Float64Array) -> NDArray[np.intp] | None:
        """Return the members of a complete group that are learned from.

        Args:
            scores: (C,) of the group's candidates, in an order that was fixed before they were played: of subsets
                whose means are equally near, the first is chosen.

        Returns:
            (size,) positions, ascending; None if the mean of these is outside of `keep`, whose ends are included.
        """
        chosen = np.arange(len(scores))
        if self.keep is None:
            return chosen
        low, high = self.keep
        if self.oversample == "balanced":
            subsets = _subsets(len(scores), self.size)
            means = scores[subsets].mean(axis=1)
            chosen = subsets[np.abs(means - (low + high) / 2).argmin()]
        members = scores[chosen].astype(np.float32)  # the precision of the rewards that they are sums of
        return chosen if keep_groups(members, np.zeros(len(members), int), low=low, high=high).all() else None

    def assign(self, experience: Experience) -> Targets:
        """Return one advantage for all decisions of an episode; value targets have no meaning.

        Raises:
            ValueError: an episode has no group, or a group is not whole.
        """
        import torch

        episodes, first, of_segment = np.unique(experience.episode.numpy(), return_index=True, return_inverse=True)
        groups = experience.group.numpy()[first]
        sizes = np.unique(groups, return_counts=True)[1]
        if not groups.all() or (sizes != self.size).any():
            raise ValueError(
                f"targets.size: a batch must hold whole groups of {self.size} episodes; found groups of "
                f"{sorted(set(sizes.tolist()))}{'' if groups.all() else ', and episodes without a group'}"
            )
        rewards = experience.rewards.where(experience.mask, 0.0)
        scores = np.bincount(of_segment, weights=rewards.double().sum(dim=1).numpy(), minlength=len(episodes))
        advantages = group_advantages(scores, groups, baseline=self.baseline, eps=self.eps)[of_segment]
        dtype = torch.promote_types(rewards.dtype, torch.float32)
        return Targets(
            value_targets=torch.zeros_like(rewards, dtype=dtype),
            advantages=torch.from_numpy(advantages).to(dtype).unsqueeze(1).expand(rewards.shape),
        )


@functools.cache
def _subsets(candidates: int, size: int) -> NDArray[np.intp]:
    """Return every way to choose `size` of the candidates, (subsets, size), earlier candidates first."""
    return np.array(list(itertools.combinations(range(candidates), size)), dtype=np.intp)
