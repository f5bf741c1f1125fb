"""Sampling of whole groups of episodes from the replay ring."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.replay.ring import ReplayRing
from vla_rl.replay.sampler import SegmentSampler
from vla_rl.types import SegmentBatch

Choose = Callable[[NDArray[np.float64]], NDArray[np.intp] | None]
"""From the scores of a complete group, by number of the member, to the members that are learned from; None leaves the
group out."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one complete group."""

    is_kept: bool
    all_succeeded: bool
    all_failed: bool


@dataclass(frozen=True, slots=True)
class _Member:
    """Episode of a group."""

    place: tuple[int, int, int]  # number in the group, env and first row: they order the members
    segments: NDArray[np.void]  # in order of time
    score: float
    success: bool


@dataclass(slots=True)
class _Group:
    """Episodes of one group that were committed to the ring."""

    members: list[_Member] = field(default_factory=list)
    kept: NDArray[np.void] | None = None  # segments of those that are learned from, once it is complete and kept
    oldest_version: int = 0  # of these
    uses: int = 0  # batches that it was in

    @property
    def segments(self) -> NDArray[np.void]:
        """Segments of all members; every wait for a batch asks for them, so those of a complete group are kept."""
        return np.concatenate([it.segments for it in self.members]) if self.kept is None else self.kept


class GroupSampler(SegmentSampler):
    """Index of the groups in the ring, and copies of some of them.

    A group is judged once, when its last member is committed: its scores and the choice of its members are final. The
    members are ordered by their numbers, not by when they ended: short episodes end first, and a choice that prefers
    the earlier of two equal members would prefer short successes. A group leaves with the first row of a member that is
    overwritten, when its oldest decision is older than `min_version` allows, and after `max_uses` batches. Incomplete
    groups wait, and leave with the first row as well.
    """

    def __init__(
        self,
        ring: ReplayRing,
        *,
        segment_length: int,
        seed: int,
        candidates: int,
        choose: Choose,
        max_uses: int | None,
        recent_groups: int,
    ) -> None:
        """Create the index.

        Args:
            ring: ring whose episodes carry group ids; those with group 0 are never sampled.
            segment_length: T; an episode is cut into segments of this length, all of which are in a batch together.
            seed: seed of the draws.
            candidates: episodes of a complete group.
            choose: judges a complete group.
            max_uses: batches that a group may be in. Groups that have been in the fewest batches, and of these the ones
                completed first, are then drawn first. None: any number, drawn uniformly.
            recent_groups: number of judged groups that `outcomes` are kept of.
        """
        super().__init__(ring, segment_length=segment_length, seed=seed)
        self._candidates, self._choose, self._max_uses = candidates, choose, max_uses
        self._groups: dict[int, _Group] = {}  # in the order of their first member, after judgement of the judgement
        self._uses_before: dict[int, int] = {}  # of the groups of a saved sampler
        self._rejected_before: int | None = None  # length of `rejected` of a saved sampler, until the first `refresh`
        self.outcomes: deque[Outcome] = deque(maxlen=recent_groups)
        self.rejected: list[Outcome] = []  # groups that were left out since the last batch

    def refresh(self) -> None:
        """Add newly committed episodes to the index, judge the groups they complete, and drop overwritten ones."""
        super().refresh()
        if self._rejected_before is not None:
            # A loaded ring is judged anew, and also holds groups that were left out before the last batch.
            del self.rejected[: max(0, len(self.rejected) - self._rejected_before)]
            self._rejected_before = None

    def sample(self, num_groups: int, *, min_version: int | None = None) -> SegmentBatch | None:
        """Draw different groups and copy all segments of their chosen members, group after group.

        Args:
            num_groups: groups of the batch.
            min_version: groups with a decision of an older version are excluded; `num_excluded` counts their segments.

        Returns:
            A batch of consistent copies; None if there are not enough groups.
        """
        while True:  # ends: each further round means that a group was overwritten, and it leaves the index
            self._evict()
            eligible = self._eligible_groups(min_version)
            if len(eligible) < num_groups:
                return None
            drawn = self._draw(eligible, num_groups)
            segments = np.concatenate([group.segments for group in drawn])
            batch = self._copy(segments)
            if self._ring.intact(segments["env"], segments["first_row"]).all():
                for group in drawn:
                    group.uses += 1
                self.rejected.clear()
                return batch

    @property
    def num_usable(self) -> int:
        """Return the groups that a batch without a limit of age could be drawn from."""
        return len(self._usable)

    @property
    def _usable(self) -> list[_Group]:
        return [
            group
            for group in self._groups.values()
            if group.kept is not None and (self._max_uses is None or group.uses < self._max_uses)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return random numbers, uses and the count of `rejected`, JSON-serialisable.

        `store` saves the ring's contents.
        """
        uses = {str(name): group.uses for name, group in self._groups.items() if group.uses}
        return {**super().state_dict(), "uses": uses, "rejected": len(self.rejected)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved sampler; call it before the first `refresh`."""
        super().load_state_dict(state)
        self._uses_before = {int(name): uses for name, uses in state.get("uses", {}).items()}
        self._rejected_before = int(state.get("rejected", 0))

    def _enter(self, episode: np.void, segments: NDArray[np.void]) -> None:
        name, length = int(episode["group"]), int(episode["length"])
        rows = self._ring.positions(episode["env"], episode["first_row"] + np.arange(length))
        score = float(self._ring.row_array("reward")[rows].sum(dtype=np.float64))
        if not name or not self._ring.intact(segments["env"], segments["first_row"]).all():
            self.num_unused += length
            return
        group = self._groups.setdefault(name, _Group())
        place = (int(episode["member"]), int(episode["env"]), int(episode["first_row"]))
        group.members.append(_Member(place, segments, score, bool(episode["success"])))
        if len(group.members) == self._candidates:
            self._judge(name, self._groups.pop(name))

    def _judge(self, name: int, group: _Group) -> None:
        """Keep a complete group with its chosen members, or leave it out."""
        group.members.sort(key=lambda it: it.place)
        chosen = self._choose(np.array([it.score for it in group.members]))
        successes = [it.success for it in group.members]
        outcome = Outcome(chosen is not None, all(successes), not any(successes))
        self.outcomes.append(outcome)
        played = int(group.segments["length"].sum())
        if chosen is None:
            self.rejected.append(outcome)
            self.num_unused += played
            return
        group.kept = np.concatenate([group.members[index].segments for index in chosen])
        group.oldest_version, group.uses = int(group.kept["oldest_version"].min()), self._uses_before.get(name, 0)
        self.num_unused += played - int(group.segments["length"].sum())
        self._groups[name] = group

    def _evict(self) -> bool:
        if not super()._evict():
            return False
        for name, group in list(self._groups.items()):
            segments = group.segments
            if not self._ring.intact(segments["env"], segments["first_row"]).all():
                del self._groups[name]
                if group.kept is None:
                    self.num_unused += int(segments["length"].sum())
        return True

    def _eligible_groups(self, min_version: int | None) -> list[_Group]:
        usable = self._usable
        self.num_excluded = 0
        if min_version is None:
            return usable
        recent = [group for group in usable if group.oldest_version >= min_version]
        self.num_excluded = sum(len(group.segments) for group in usable) - sum(len(group.segments) for group in recent)
        return recent

    def _draw(self, eligible: Sequence[_Group], count: int) -> list[_Group]:
        if self._max_uses is None:
            return [eligible[index] for index in self._random.choice(len(eligible), size=count, replace=False)]
        return sorted(eligible, key=lambda group: group.uses)[:count]
