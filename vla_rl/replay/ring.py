"""Replay ring: decisions of many envs in shared memory, one writer per env, one reader.

    env worker                                            learner
    writer = ReplayRing.attach(handle).writer(env_index)  sampler = SegmentSampler(ring, segment_length=8, seed=0)
    writer.begin(task_index)                              sampler.refresh()
    writer.add(...)         # once per decision           batch = sampler.sample(32)
    writer.commit(frames, state)

There is no lock. Rows are counted from the start of the run, and row r of an env is stored at r mod R of its region.
Before a writer touches a row it announces it in `claimed` (all rows below are, or were, being written), so row r is
intact exactly while r >= claimed - R. The reader copies first and checks afterwards; segments overwritten meanwhile are
drawn again. An episode becomes visible by its entry in the catalogue, written before the count that includes it. Rows
after the last entry (an unfinished episode of a worker that died) are invisible, and the next writer of that env starts
there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vla_rl.ipc.fence import Fence
from vla_rl.ipc.shared_arrays import InSharedBlock, SharedArrays, SharedArraysHandle
from vla_rl.replay.layout import EPISODE, RingLayout
from vla_rl.types import ActionSpec, FloatArray, ObservationSpec, TokenArray, UInt8Array


@dataclass(frozen=True, slots=True)
class RingHandle:
    """Handle with which another process attaches."""

    layout: RingLayout
    block: SharedArraysHandle


class ReplayRing(InSharedBlock):
    """Shared memory of all regions, with the queries of a reader."""

    def __init__(self, layout: RingLayout, block: SharedArrays) -> None:
        self.layout = layout
        super().__init__(block)
        self._claimed = block["claimed"]
        self._num_episodes = block["num_episodes"]
        self._episodes = block["episodes"].view(EPISODE)[..., 0]
        self._fence = Fence()

    @classmethod
    def create(
        cls,
        *,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        num_envs: int,
        capacity: int,
        max_episode_decisions: int,
        store_logits: bool = False,
    ) -> Self:
        """Allocate a ring; the caller owns it.

        Args:
            observation_spec: shapes of an observation.
            action_spec: shapes of an action.
            num_envs: regions, one per env of the cell.
            capacity: rows of all regions together (see `RingLayout`).
            max_episode_decisions: the longest episode an env can produce.
            store_logits: store the behaviour policy's distributions in every row.

        Raises:
            ValueError: capacity too small for two episodes per env, or for shared memory too large.
        """
        layout = RingLayout(observation_spec, action_spec, num_envs, capacity, max_episode_decisions, store_logits)
        block = SharedArrays.create("replay", layout.fields())
        block["claimed"][:] = 0
        block["num_episodes"][:] = 0
        return cls(layout, block)

    @classmethod
    def attach(cls, handle: RingHandle) -> Self:
        """Map the ring of another process."""
        return cls(handle.layout, SharedArrays.attach(handle.block))

    @property
    def handle(self) -> RingHandle:
        """Return a handle for a spawned process."""
        return RingHandle(self.layout, self._block.handle)

    def writer(self, env_index: int) -> EpisodeWriter:
        """Return the writer of one env.

        Only one may exist at a time; its predecessor's unfinished episode is dropped.
        """
        if not 0 <= env_index < self.layout.num_envs:
            raise ValueError(f"env_index must be in 0..{self.layout.num_envs - 1}, got {env_index}")
        return EpisodeWriter(self, env_index)

    def row_array(self, name: str) -> NDArray[Any]:
        """Return one row field of all regions, (num_envs · R, ...), a live view."""
        return self._block[name]

    def positions(self, env: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions in `row_array` of absolute rows of envs."""
        return env * self.layout.rows_per_env + rows % self.layout.rows_per_env

    def intact(self, env: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether none of these rows, nor any row after them, is being overwritten. Call it after copying."""
        self._fence()
        is_intact: NDArray[np.bool_] = rows >= self._claimed[env] - self.layout.rows_per_env
        return is_intact

    def episodes_after(self, env_index: int, num_seen: int) -> tuple[NDArray[np.void], int]:
        """Return the catalogue of an env's episodes, oldest first, without the first `num_seen` and overwritten ones.

        Returns:
            A copy with dtype EPISODE, and the number of episodes that the env has committed.
        """
        catalogue_size = self.layout.episodes_per_env
        count = int(self._num_episodes[env_index])
        self._fence()
        indices = np.arange(max(num_seen, count - catalogue_size), count)
        entries = self._episodes[env_index, indices % catalogue_size]
        self._fence()
        # Entry i is rewritten while episode i + size is being committed, that is, once the count has reached it.
        is_whole = indices + catalogue_size > int(self._num_episodes[env_index])
        return entries[is_whole], count

    @property
    def num_episodes(self) -> NDArray[np.int64]:
        """Return the episodes that each env has committed, (num_envs,), a copy."""
        counts: NDArray[np.int64] = self._num_episodes.copy()
        return counts

    def newest_groups(self, env_index: int, count: int) -> list[int]:
        """Return the groups of an env's newest episodes, at most `count`, oldest first."""
        committed = int(self._num_episodes[env_index])
        self._fence()
        newest = np.arange(max(0, committed - count), committed) % self.layout.episodes_per_env
        groups: list[int] = self._episodes[env_index, newest]["group"].tolist()
        return groups

    def has_episodes_after(self, num_seen: Sequence[int]) -> bool:
        """Return whether any env has committed more episodes than that."""
        return bool((self._num_episodes != num_seen).any())

    def all_episodes_after(self, num_seen: Sequence[int]) -> tuple[NDArray[np.void], list[int]]:
        """Return `episodes_after` for every env at once, in the order of the commits."""
        found = [self.episodes_after(env, seen) for env, seen in enumerate(num_seen)]
        episodes = np.concatenate([entries for entries, _ in found])
        return episodes[np.argsort(episodes["committed_at"], kind="stable")], [count for _, count in found]

    def present_episodes(self) -> NDArray[np.void]:
        """Return entries of the committed episodes without overwritten rows, in the order of their commits."""
        episodes, _ = self.all_episodes_after([0] * self.layout.num_envs)
        return episodes[self.intact(episodes["env"], episodes["first_row"])]


class EpisodeWriter:
    """Writer of one env's episodes, row by row, without allocating. Made by `ReplayRing.writer`."""

    def __init__(self, ring: ReplayRing, env_index: int) -> None:
        layout = ring.layout
        self._layout = layout
        self._fence = Fence()
        self._env_index = env_index
        self._region_start = env_index * layout.rows_per_env
        self._arrays = {field.name: ring.row_array(field.name) for field in layout.row_fields()}
        self._claimed = ring._claimed[env_index : env_index + 1]
        self._num_episodes = ring._num_episodes[env_index : env_index + 1]
        self._episodes = ring._episodes[env_index]
        self._first_row, self._decisions_total = self._end_of_last_episode()
        self._length = 0
        self._task_index: int | None = None  # of the current episode
        self._group = self._member = 0  # of the current episode
        self._has_ended = False

    def begin(self, task_index: int, *, group: int = 0, member: int = 0) -> None:
        """Start an episode.

        Args:
            task_index: index in the run's list of tasks.
            group: id that it shares with the other episodes of its group; 0 for an episode without a group.
            member: its number in the group.
        """
        if self._task_index is not None:
            raise RuntimeError("the last episode is unfinished: commit() or abandon() it before begin()")
        self._task_index, self._group, self._member = task_index, group, member

    def add(  # noqa: PLR0913 - a decision has this many parts, all named
        self,
        *,
        frames: UInt8Array,
        state: FloatArray,
        tokens: TokenArray,
        logprobs: FloatArray,
        value: float,
        reward: float,
        executed: int,
        terminated: bool,
        truncated: bool,
        policy_version: int,
        logits: FloatArray | None = None,
    ) -> None:
        """Append a decision and its outcome.

        Args:
            frames: (N, H, W, 3) uint8, before the decision.
            state: (S,) float32, before the decision.
            tokens: (A,) int16 or float32, according to the action spec.
            logprobs: (A,) float32 of the tokens under the policy that acted.
            value: that policy's value estimate.
            reward: summed over the executed control steps.
            executed: control steps that ran, 1..K.
            terminated: the task ended.
            truncated: the horizon ended.
            policy_version: version of the weights that acted.
            logits: (A, V) float32 `Acted.behavior`, if and only if the ring stores it.

        Raises:
            ValueError: executed out of range, logits given or missing, or an episode longer than the ring was made for.
            RuntimeError: no episode was begun, or it has ended.
        """
        if self._task_index is None or self._has_ended:
            raise RuntimeError("add() needs a begun episode that has not ended")
        if self._length == self._layout.max_episode_decisions:
            raise ValueError(f"an episode may have {self._length} decisions (max_episode_decisions), got one more")
        if not 1 <= executed <= self._layout.action_spec.chunk_size:
            raise ValueError(f"executed must be in 1..{self._layout.action_spec.chunk_size}, got {executed}")
        if (logits is not None) != self._layout.store_logits:
            raise ValueError(f"logits must be given if and only if the ring stores them: {self._layout.store_logits}")
        position = self._claim(self._length)
        arrays = self._arrays
        arrays["frames"][position] = frames
        arrays["state"][position] = state
        arrays["tokens"][position] = tokens
        arrays["logprobs"][position] = logprobs
        arrays["value"][position] = value
        arrays["reward"][position] = reward
        arrays["executed"][position] = executed
        arrays["terminated"][position] = terminated
        arrays["truncated"][position] = truncated
        arrays["policy_version"][position] = policy_version
        if logits is not None:
            arrays["logits"][position] = logits
        self._length += 1
        self._has_ended = terminated or truncated

    def commit(self, final_frames: UInt8Array, final_state: FloatArray, *, success: bool = False) -> None:
        """Store the observation after the last decision and make the episode visible.

        Args:
            final_frames: (N, H, W, 3) uint8, after the last decision.
            final_state: (S,) float32, after the last decision.
            success: the goal was reached; implied by a termination.

        Raises:
            RuntimeError: the last decision was neither terminated nor truncated.
        """
        if self._task_index is None or not self._has_ended:
            raise RuntimeError("commit() needs an episode whose last decision terminated or truncated it")
        succeeded = success or bool(self._arrays["terminated"][self._position(self._length - 1)])
        position = self._claim(self._length)
        self._arrays["frames"][position] = final_frames
        self._arrays["state"][position] = final_state
        count = int(self._num_episodes[0])
        self._decisions_total += self._length
        self._episodes[count % self._layout.episodes_per_env] = (
            self._env_index,
            self._task_index,
            self._group,
            self._member,
            self._first_row,
            succeeded,
            self._length,
            self._decisions_total,
            time.monotonic_ns(),
        )
        self._fence()
        self._num_episodes[0] = count + 1
        self._first_row += self._length + 1
        self.abandon()

    def abandon(self) -> None:
        """Drop the unfinished episode, if there is one; its rows are reused."""
        self._length = 0
        self._task_index = None
        self._has_ended = False

    def _claim(self, offset: int) -> int:
        """Announce a row of the episode; return its position."""
        row = self._first_row + offset
        # Never lowered: rows that an abandoned episode overwrote stay overwritten.
        self._claimed[0] = max(int(self._claimed[0]), row + 1)
        self._fence()
        return self._position(offset)

    def _position(self, offset: int) -> int:
        """Return the position in the row arrays of a row of the episode."""
        return self._region_start + (self._first_row + offset) % self._layout.rows_per_env

    def _end_of_last_episode(self) -> tuple[int, int]:
        """Return the first free row and the decisions so far, according to the catalogue."""
        count = int(self._num_episodes[0])
        if count == 0:
            return 0, 0
        last = self._episodes[(count - 1) % self._layout.episodes_per_env]
        return int(last["first_row"] + last["length"] + 1), int(last["decisions_total"])
