"""Shapes and sizes of the replay ring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.ipc import shared_arrays
from vla_rl.ipc.shared_arrays import Field
from vla_rl.types import ActionSpec, ObservationSpec

# One committed episode. All columns are int64, so that the catalogue is a plain array in shared memory.
EPISODE = np.dtype(
    [
        ("env", np.int64),
        ("task_index", np.int64),
        ("group", np.int64),  # episodes with the same start share it; 0: none
        ("member", np.int64),  # number in its group, fixed before it is played
        (
            "first_row",
            np.int64,
        ),  # absolute: rows are counted from the start of the run; row r is stored at r mod rows_per_env
        ("success", np.int64),  # 1: the goal was reached, with or without a termination
        ("length", np.int64),  # decisions; the last observation follows in row first_row + length
        ("decisions_total", np.int64),  # decisions this env has committed, including this episode
        ("committed_at", np.int64),  # monotonic nanoseconds
    ]
)


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Dimensions of a ring. Every env owns a region of `rows_per_env` rows.

    A row holds one decision, or the last observation of an episode. `capacity` counts rows: an episode of L decisions
    takes L + 1, and each env needs room for its current episode.
    """

    observation_spec: ObservationSpec
    action_spec: ActionSpec
    num_envs: int
    capacity: int
    max_episode_decisions: int
    store_logits: bool

    def __post_init__(self) -> None:
        smallest = smallest_capacity(num_envs=self.num_envs, max_episode_decisions=self.max_episode_decisions)
        if self.capacity < smallest:
            raise ValueError(
                f"replay.capacity must hold two of the longest episodes of every env: {self.num_envs} envs with "
                f"episodes of up to {self.max_episode_decisions} decisions need at least {smallest}, "
                f"got {self.capacity}. "
                f"Raise replay.capacity, or lower rollout.num_workers, rollout.envs_per_worker or env.horizon."
            )

    @property
    def rows_per_env(self) -> int:
        """Return R, the rows of one region."""
        return self.capacity // self.num_envs

    @property
    def episodes_per_env(self) -> int:
        """Return the entries of a region's catalogue: more than the episodes that can have a row (two rows each)."""
        return self.rows_per_env // 2 + 2

    @property
    def guaranteed_decisions(self) -> int:
        """Return the committed decisions that are always present in a full ring, for the worst episode lengths.

        The episode being written and the one it overwrites count as nothing; half of the rest can be last observations
        of episodes of one decision. Waiting for a larger fill could take forever.
        """
        longest = self.max_episode_decisions + 1
        return self.num_envs * max(1, (self.rows_per_env - 2 * longest + 1) // 2)

    def row_fields(self) -> list[Field]:
        """Return the fields of a row; the leading dimension counts all rows of all regions, region after region."""
        rows, num_tokens = self.num_envs * self.rows_per_env, self.action_spec.num_tokens
        fields = [
            Field("frames", (rows, *self.observation_spec.frames_shape), np.uint8),
            Field("state", (rows, self.observation_spec.state_dim), np.float32),
            Field("tokens", (rows, num_tokens), self.action_spec.token_dtype),
            Field("logprobs", (rows, num_tokens), np.float32),
            Field("value", (rows,), np.float32),
            Field("reward", (rows,), np.float32),
            Field("executed", (rows,), np.int16),
            Field("terminated", (rows,), np.bool_),
            Field("truncated", (rows,), np.bool_),
            Field("policy_version", (rows,), np.int64),
        ]
        if self.store_logits:
            fields.append(Field("logits", (rows, num_tokens, self.action_spec.num_behavior), np.float32))
        return fields

    def fields(self) -> list[Field]:
        """Return all arrays of the ring: the rows and the catalogue."""
        return [
            *self.row_fields(),
            Field("claimed", (self.num_envs,), np.int64),
            Field("num_episodes", (self.num_envs,), np.int64),
            Field("episodes", (self.num_envs, self.episodes_per_env, EPISODE.itemsize // 8), np.int64),
        ]


def smallest_capacity(*, num_envs: int, max_episode_decisions: int) -> int:
    """Return the smallest `replay.capacity`: two of the longest episodes of every env, last observations included."""
    return num_envs * 2 * (max_episode_decisions + 1)


def capacity_for(decisions: int, *, num_envs: int, max_episode_decisions: int) -> int:
    """Return the smallest `replay.capacity` that always holds so many decisions: inverts `guaranteed_decisions`."""
    smallest = smallest_capacity(num_envs=num_envs, max_episode_decisions=max_episode_decisions)
    of_each = -(-decisions // num_envs)
    return smallest if of_each <= 1 else smallest + num_envs * (2 * of_each - 1)


def bytes_needed(
    *,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    num_envs: int,
    capacity: int,
    max_episode_decisions: int,
    store_logits: bool = False,
) -> int:
    """Return the bytes of shared memory that a ring with these arguments takes.

    Raises:
        ValueError: capacity too small.
    """
    layout = RingLayout(observation_spec, action_spec, num_envs, capacity, max_episode_decisions, store_logits)
    return shared_arrays.bytes_needed(layout.fields())
