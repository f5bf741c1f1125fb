"""Interface of every kind of credit, and its input and output records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vla_rl.section import Section, TimeLimit

if TYPE_CHECKING:
    from torch import Tensor

ValueSource = Literal["current", "acting"]

TIME_LIMIT: TimeLimit | None = Field(
    None,
    description="what the horizon means. end: it is part of the task, as in success within the horizon; the value "
    "after it is 0. bootstrap: it interrupts a task that continues; the critic's value replaces what would follow. "
    "Default: bootstrap for metaworld, end for others",
)
VALUES: ValueSource = Field(
    "current",
    description="values that the targets use. current: the learner's, computed anew in every update; acting: those "
    "of the policy that acted, which are as old as the decision but save gae a pass",
)


@dataclass(frozen=True, slots=True)
class Experience:
    """Segments of B episodes, T decisions each, in order of time. Padding holds anything.

    Padding begins where an episode has ended, and elements after an end have no effect on earlier targets.
    """

    rewards: Tensor  # (B, T), summed over the control steps of a decision
    terminated: Tensor  # (B, T) bool, the task ended
    truncated: Tensor  # (B, T) bool, the horizon was reached
    values: Tensor  # (B, T + 1) V of every observation; the one after the last decision bootstraps
    log_ratios: Tensor  # (B, T) log π/μ of whole decisions; zeros unless `Credit.needs_log_ratios`
    mask: Tensor  # (B, T) bool, True where there is a decision
    episode: Tensor  # (B,) int64, the same for all segments of an episode
    group: Tensor  # (B,) int64, the same for all episodes of a group; 0: none


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets that a credit assigns: constants of an update, float32 at least. Padding has no meaning."""

    value_targets: Tensor  # (B, T), regression targets of the critic; no meaning unless `Credit.needs_values`
    advantages: Tensor  # (B, T), not normalised and without an importance ratio: the surrogate multiplies by it


@dataclass(frozen=True, slots=True)
class GroupNeeds:
    """Sizes and limits of the groups of episodes with the same start that a credit needs."""

    size: int  # episodes of a group in a batch
    candidates: int  # episodes played per group, of which `Credit.choose` takes `size`
    max_uses: int | None  # updates that a group may be in; None: any number
    max_rejected: int  # groups left out since the last batch, after which a run that waits for one ends
    max_lead: int = 2  # groups by which an environment may be ahead of others that play the same ones


class Credit(Section, ABC):
    """The recipe's `targets`: how rewards become value targets and advantages."""

    needs_values: ClassVar[bool] = True  # it uses `Experience.values`, so that a critic is built and trained

    if TYPE_CHECKING:  # kinds declare these fields after their own: that is their order in a recipe

        @property
        def values(self) -> ValueSource:
            """Return whose values the targets use, if they use any."""

        @property
        def time_limit(self) -> TimeLimit | None:
            """Return the meaning of the horizon, if it is set."""

    @classmethod
    def kind(cls) -> str:
        """Return the name that chooses it in a recipe."""
        return str(get_args(cls.model_fields["name"].annotation)[0])

    @property
    def needs_current_values(self) -> bool:
        """Return whether every V must be the learner's; otherwise those of acting time are used if available."""
        return self.values == "current"

    @property
    def needs_log_ratios(self) -> bool:
        """Return whether it uses `Experience.log_ratios`."""
        return False

    @property
    def horizon(self) -> TimeLimit:
        """Return the meaning of the horizon for the task.

        Raises:
            ValueError: `time_limit` is not set. Recipes fill in their environment's.
        """
        if self.time_limit is None:
            raise ValueError("targets.time_limit is not set; allowed are end and bootstrap")
        return self.time_limit

    @property
    def groups(self) -> GroupNeeds | None:
        """Return what it asks of groups of episodes, which are in a batch as a whole; None if it needs none."""
        return None

    def choose(self, scores: NDArray[np.float64]) -> NDArray[np.intp] | None:
        """Return the members of a complete group that are learned from, by their scores; None: leave the group out.

        The scores come in an order that says nothing about the episodes, their durations included.
        """
        return np.arange(len(scores))

    @abstractmethod
    def assign(self, experience: Experience) -> Targets:
        """Return value targets and advantages, (B, T) each."""
