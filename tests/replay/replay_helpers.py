"""Episodes whose every number tells where it comes from."""

from __future__ import annotations

import numpy as np

from vla_rl.replay.ring import EpisodeWriter, ReplayRing
from vla_rl.types import ActionSpec, ObservationSpec, SegmentBatch

OBSERVATION = ObservationSpec(num_images=1, image_size=4, state_dim=3)
ACTION = ActionSpec(chunk_size=2, action_dim=2, num_bins=5)
CHUNK, TOKENS = 2, 4


def make_ring(*, num_envs=1, capacity=40, longest=6, store_logits=False, observation=OBSERVATION) -> ReplayRing:
    return ReplayRing.create(
        observation_spec=observation,
        action_spec=ACTION,
        num_envs=num_envs,
        capacity=capacity,
        max_episode_decisions=longest,
        store_logits=store_logits,
    )


def add_decision(
    writer: EpisodeWriter, signature: int, *, version=0, last=False, truncate=False, logits=None, reward=None
) -> None:
    """One decision all of whose numbers follow from `signature` (below 2**15)."""
    writer.add(
        frames=np.full(writer_frames_shape(writer), signature % 251, np.uint8),
        state=np.full(3, signature, np.float32),
        tokens=np.full(TOKENS, signature, np.int16),
        logprobs=np.full(TOKENS, -signature, np.float32),
        value=signature + 0.5,
        reward=signature + 0.25 if reward is None else reward,
        executed=1 + signature % CHUNK,
        terminated=last and not truncate,
        truncated=last and truncate,
        policy_version=version,
        logits=logits,
    )


def writer_frames_shape(writer: EpisodeWriter) -> tuple[int, ...]:
    return writer._layout.observation_spec.frames_shape


def write_episode(
    writer: EpisodeWriter, first: int, length: int, *, task=0, group=0, member=0, version=0, truncate=False, logits=None
):
    """Decisions with signatures first, first + 1, ...; the last observation has signature first + length."""
    writer.begin(task, group=group, member=member)
    for index in range(length):
        last = index == length - 1
        add_decision(writer, first + index, version=version, last=last, truncate=truncate, logits=logits)
    final = first + length
    writer.commit(np.full(writer_frames_shape(writer), final % 251, np.uint8), np.full(3, final, np.float32))


def signatures(batch: SegmentBatch) -> list[list[int]]:
    """The decisions' signatures of each segment, by their values."""
    return [
        [int(value - 0.5) for value in values[mask]]
        for values, mask in zip(batch.behavior_values[:, :-1], batch.mask, strict=True)
    ]


def assert_value_after(batch: SegmentBatch, b: int) -> None:
    """After the last decision of segment b: the next decision's value, none where the episode has ended."""
    length = int(batch.mask[b].sum())
    is_end = batch.terminated[b, length - 1] or batch.truncated[b, length - 1]
    found = batch.behavior_values[b, length]
    assert np.isnan(found) if is_end else found == batch.behavior_values[b, length - 1] + 1


def assert_consistent(batch: SegmentBatch) -> None:
    """Every number of every row belongs to the same decision, decisions follow each other, and padding is zero."""
    for b in range(len(batch.mask)):
        length = int(batch.mask[b].sum())
        assert batch.mask[b].tolist() == [t < length for t in range(batch.mask.shape[1])]
        assert_value_after(batch, b)
        first = int(batch.state[b, 0, 0])
        for t in range(batch.mask.shape[1] + 1):
            signature = first + t
            seen = t <= length
            assert np.unique(batch.state[b, t]).tolist() == [signature if seen else 0]
            if batch.frames.size:
                assert np.unique(batch.frames[b, t]).tolist() == [signature % 251 if seen else 0]
        for t in range(batch.mask.shape[1]):
            signature = first + t
            acted = t < length
            assert np.unique(batch.tokens[b, t]).tolist() == [signature if acted else 0]
            assert np.unique(batch.behavior_logprobs[b, t]).tolist() == [-signature if acted else 0]
            if t != length:
                assert batch.behavior_values[b, t] == (signature + 0.5 if acted else 0)
            assert batch.rewards[b, t] == (signature + 0.25 if acted else 0)
            assert batch.executed[b, t] == (1 + signature % CHUNK if acted else 0)
            if not acted:
                assert not batch.terminated[b, t]
                assert not batch.truncated[b, t]
                assert batch.policy_version[b, t] == batch.age[b, t] == 0
