"""Uniform sampling of segments from the replay ring, by its one reader."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.replay.ring import ReplayRing
from vla_rl.types import SegmentBatch

_SEGMENT = np.dtype(
    [
        ("env", np.int64),
        ("task_index", np.int64),
        ("episode", np.int64),  # number that no other episode of the ring has
        ("group", np.int64),
        ("first_row", np.int64),  # absolute, see the ring
        ("length", np.int64),  # decisions, 1..T
        ("oldest_version", np.int64),  # smallest policy_version among them
        ("ordinal", np.int64),  # decisions committed to the ring before the first of them
    ]
)


class SegmentSampler:
    """Index of the segments that are in the ring, and copies of some of them.

    Every episode is cut into pieces of `segment_length` decisions, the last one shorter; a segment never crosses an
    episode. Every decision belongs to exactly one segment and segments are drawn uniformly, so every decision that is
    present is equally likely to be in a batch.
    """

    def __init__(self, ring: ReplayRing, *, segment_length: int, seed: int) -> None:
        self._ring = ring
        self._segment_length = segment_length
        self._random = np.random.default_rng(seed)
        self._episodes_seen = [0] * ring.layout.num_envs
        self._committed = np.zeros(ring.layout.num_envs, np.int64)
        self._segments = np.zeros(0, _SEGMENT)
        self.num_excluded = 0  # segments that the last `sample` excluded for their lag
        self.num_unused = 0  # committed decisions that will be in no batch, for a reason other than their age

    @property
    def num_decisions(self) -> int:
        """Return the committed decisions that were present at the last `refresh` or `sample`."""
        return int(self._segments["length"].sum())

    @property
    def num_segments(self) -> int:
        """Return the segments that were present at the last `refresh` or `sample`."""
        return len(self._segments)

    @property
    def total_committed(self) -> int:
        """Return the decisions ever committed to the ring, as of the last `refresh`. Never decreases."""
        return int(self._committed.sum())

    def refresh(self) -> None:
        """Add newly committed episodes to the index and drop overwritten ones."""
        if self._ring.has_episodes_after(self._episodes_seen):
            self._add_new_episodes()
        self._evict()

    def sample(self, num_segments: int, *, min_version: int | None = None) -> SegmentBatch | None:
        """Draw segments uniformly, with replacement, and copy them.

        Args:
            num_segments: B.
            min_version: segments whose oldest decision was made by an older version are excluded and counted in
                `num_excluded`.

        Returns:
            A batch of consistent copies; None if no segment is eligible.
        """
        self._evict()
        drawn = np.zeros(num_segments, _SEGMENT)
        missing = np.ones(num_segments, np.bool_)
        # Terminates: each further round means that a segment was overwritten, and that segment leaves the index.
        while missing.any():
            eligible = self._eligible(min_version)
            if len(eligible) == 0:
                return None
            drawn[missing] = self._segments[self._random.choice(eligible, size=int(missing.sum()))]
            batch = self._copy(drawn)
            missing = ~self._ring.intact(drawn["env"], drawn["first_row"])
            if missing.any():
                self._evict()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random numbers, JSON-serialisable. `store` saves the ring's contents."""
        return {"random": self._random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the random numbers of a saved sampler."""
        self._random.bit_generator.state = state["random"]

    def _add_new_episodes(self) -> None:
        episodes, self._episodes_seen = self._ring.all_episodes_after(self._episodes_seen)
        np.maximum.at(self._committed, episodes["env"], episodes["decisions_total"])
        ordinals = self.total_committed - np.cumsum(episodes["length"][::-1])[::-1]
        new_segments = [self._cut(episode, ordinal) for episode, ordinal in zip(episodes, ordinals, strict=True)]
        self._segments = np.concatenate([self._segments, *new_segments])
        for episode, segments in zip(episodes, new_segments, strict=True):
            self._enter(episode, segments)

    def _enter(self, episode: np.void, segments: NDArray[np.void]) -> None:
        """Take note of an episode and its segments; a place for indices of more than segments."""

    def _cut(self, episode: np.void, ordinal: int) -> NDArray[np.void]:
        """Return the segments of one episode; `ordinal` decisions were committed before it."""
        length = int(episode["length"])
        starts = np.arange(0, length, self._segment_length)
        rows = episode["first_row"] + np.arange(length)
        versions = self._ring.row_array("policy_version")[self._ring.positions(episode["env"], rows)]
        segments = np.zeros(len(starts), _SEGMENT)
        segments["env"] = episode["env"]
        segments["task_index"] = episode["task_index"]
        segments["episode"] = episode["env"] + self._ring.layout.num_envs * episode["first_row"]
        segments["group"] = episode["group"]
        segments["first_row"] = episode["first_row"] + starts
        segments["length"] = np.minimum(self._segment_length, length - starts)
        segments["oldest_version"] = np.minimum.reduceat(versions, starts)
        segments["ordinal"] = ordinal + starts
        return segments

    def _evict(self) -> bool:
        """Drop overwritten segments from the index; return whether there were any."""
        is_intact = self._ring.intact(self._segments["env"], self._segments["first_row"])
        if is_intact.all():
            return False
        self._segments = self._segments[is_intact]
        return True

    def _eligible(self, min_version: int | None) -> NDArray[np.intp]:
        if min_version is None:
            self.num_excluded = 0
            return np.arange(len(self._segments))
        eligible = np.flatnonzero(self._segments["oldest_version"] >= min_version)
        self.num_excluded = len(self._segments) - len(eligible)
        return eligible

    def _copy(self, segments: NDArray[np.void]) -> SegmentBatch:
        time = np.arange(self._segment_length + 1)
        length = segments["length"][:, None]
        positions = self._ring.positions(segments["env"][:, None], segments["first_row"][:, None] + time)
        is_observed, mask = time <= length, time[:-1] < length
        is_full = bool(mask.all())
        decided = positions[:, :-1]

        def observations(name: str) -> NDArray[Any]:
            return _take(self._ring.row_array(name), positions, None if is_full else is_observed)

        def decisions(name: str) -> NDArray[Any]:
            return _take(self._ring.row_array(name), decided, None if is_full else mask)

        values, terminated, truncated = observations("value"), decisions("terminated"), decisions("truncated")
        has_ended = (terminated | truncated).any(axis=1)
        values[np.flatnonzero(has_ended), segments["length"][has_ended]] = np.nan  # that row holds no decision
        age = self.total_committed - 1 - segments["ordinal"][:, None] - time[:-1]
        return SegmentBatch(
            frames=observations("frames"),
            state=observations("state"),
            task_index=segments["task_index"].copy(),
            episode=segments["episode"].copy(),
            group=segments["group"].copy(),
            tokens=decisions("tokens"),
            behavior_logprobs=decisions("logprobs"),
            behavior_logits=decisions("logits") if self._ring.layout.store_logits else None,
            behavior_values=values,
            rewards=decisions("reward"),
            executed=decisions("executed"),
            terminated=terminated,
            truncated=truncated,
            policy_version=decisions("policy_version"),
            age=age if is_full else np.where(mask, age, 0),
            mask=mask,
        )


def _take(rows: NDArray[Any], positions: NDArray[np.int64], where: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Copy rows at (B, T) positions, with zeros where `where` is False; None: nowhere."""
    taken = rows.take(positions, axis=0)
    if where is not None:
        taken[~where] = 0
    return taken
