from __future__ import annotations

import multiprocessing
import os
import tracemalloc

import numpy as np
import pytest
from replay_helpers import ACTION, OBSERVATION, add_decision, make_ring, write_episode

from vla_rl.replay.layout import RingLayout, bytes_needed, capacity_for, smallest_capacity
from vla_rl.replay.ring import ReplayRing, RingHandle
from vla_rl.types import ObservationSpec


def lengths(ring: ReplayRing, env: int = 0, seen: int = 0) -> list[int]:
    return ring.episodes_after(env, seen)[0]["length"].tolist()


def write_half_an_episode_and_die(handle: RingHandle) -> None:
    writer = ReplayRing.attach(handle).writer(0)
    write_episode(writer, 100, 3)
    writer.begin(0)
    add_decision(writer, 200)
    add_decision(writer, 201)
    os._exit(9)


def test_the_smallest_capacity_holds_two_longest_episodes_with_their_last_observations():
    assert smallest_capacity(num_envs=3, max_episode_decisions=6) == 42
    make_ring(num_envs=3, capacity=42).__exit__()
    message = r"replay\.capacity.*3 envs.*6 decisions need at least 42, got 41\. Raise replay\.capacity"
    with pytest.raises(ValueError, match=message):
        make_ring(num_envs=3, capacity=41)


def test_the_needed_bytes_are_those_of_the_block():
    with make_ring(num_envs=2, capacity=40, store_logits=True) as ring:
        needed = bytes_needed(
            observation_spec=OBSERVATION,
            action_spec=ACTION,
            num_envs=2,
            capacity=40,
            max_episode_decisions=6,
            store_logits=True,
        )
        assert os.fstat(ring.handle.block.file._descriptor).st_size == needed
        assert needed > 40 * (48 + 12 + 4 * 5 * 4)


def test_an_episode_is_visible_only_after_its_commit():
    with make_ring() as ring:
        writer = ring.writer(0)
        writer.begin(3)
        add_decision(writer, 1)
        assert lengths(ring) == []
        add_decision(writer, 2, last=True)
        assert lengths(ring) == []
        writer.commit(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(3, np.float32))
        entries, count = ring.episodes_after(0, 0)
        assert count == 1
        assert [entries[name].item() for name in ("task_index", "first_row", "length")] == [3, 0, 2]


def test_every_env_has_its_own_catalogue():
    with make_ring(num_envs=2) as ring:
        write_episode(ring.writer(0), 10, 2)
        write_episode(ring.writer(1), 20, 3)
        write_episode(ring.writer(1), 30, 4)
        assert lengths(ring, 0) == [2]
        assert lengths(ring, 1) == [3, 4]
        assert lengths(ring, 1, seen=1) == [4]
        assert ring.episodes_after(1, 0)[0]["decisions_total"].tolist() == [3, 7]


def test_rows_are_intact_until_the_writer_announces_their_place():
    with make_ring(capacity=14) as ring:
        writer, env = ring.writer(0), np.zeros(14, np.int64)
        rows = np.arange(14)
        write_episode(writer, 0, 6)  # rows 0..6
        write_episode(writer, 0, 6)  # rows 7..13
        assert ring.intact(env, rows).all()
        writer.begin(0)
        assert ring.intact(env, rows).all()
        add_decision(writer, 50)  # row 14 lies on row 0
        assert ring.intact(env, rows).tolist() == [False] + [True] * 13
        add_decision(writer, 51)
        writer.abandon()
        writer.begin(0)
        add_decision(writer, 52)  # on row 0 again: row 1 stays lost
        assert ring.intact(env, rows).tolist() == [False] * 2 + [True] * 12


class LooksWhileWritten:
    """Stands for frames; asks the ring, in the middle of their being written, which of the first 14 rows are intact."""

    def __init__(self, ring: ReplayRing) -> None:
        self.ring = ring
        self.lost: list[list[int]] = []

    def __array__(self, dtype=None, copy=None):
        rows = np.arange(14)
        self.lost.append(rows[~self.ring.intact(np.zeros(14, np.int64), rows)].tolist())
        return np.zeros((1, 4, 4, 3), np.uint8)


def test_a_row_is_announced_before_it_is_written():
    with make_ring(capacity=14) as ring:
        writer, frames = ring.writer(0), LooksWhileWritten(ring)
        write_episode(writer, 0, 6)
        write_episode(writer, 0, 6)
        writer.begin(0)
        writer.add(
            frames=frames,
            state=np.zeros(3, np.float32),
            tokens=np.zeros(4, np.int16),
            logprobs=np.zeros(4, np.float32),
            value=0.0,
            reward=0.0,
            executed=1,
            terminated=True,
            truncated=False,
            policy_version=0,
        )
        writer.commit(frames, np.zeros(3, np.float32))
        assert frames.lost == [[0], [0, 1]]


def test_an_abandoned_episode_is_never_seen_and_its_rows_are_used_again():
    with make_ring(capacity=14) as ring:
        writer = ring.writer(0)
        for _ in range(20):  # more rows than the region has
            writer.begin(0)
            add_decision(writer, 1)
            add_decision(writer, 2)
            writer.abandon()
        assert lengths(ring) == []
        write_episode(writer, 5, 4)
        assert ring.episodes_after(0, 0)[0]["first_row"].tolist() == [0]
        assert ring.row_array("value")[:4].tolist() == [5.5, 6.5, 7.5, 8.5]


def test_the_writer_of_a_restarted_worker_drops_what_its_predecessor_left():
    with make_ring() as ring:
        child = multiprocessing.get_context("spawn").Process(target=write_half_an_episode_and_die, args=(ring.handle,))
        child.start()
        child.join(30)
        assert child.exitcode == 9
        assert lengths(ring) == [3]
        write_episode(ring.writer(0), 300, 2, task=3)
        entries, _ = ring.episodes_after(0, 0)
        assert entries["task_index"].tolist() == [0, 3]
        assert entries["first_row"].tolist() == [0, 4]
        assert entries["decisions_total"].tolist() == [3, 5]


def test_the_catalogue_wraps_and_gives_every_episode_that_can_be_present():
    with make_ring(capacity=14) as ring:  # 14 rows: at most 7 episodes of one decision, and one that is going
        writer = ring.writer(0)
        for index in range(100):
            write_episode(writer, index, 1, task=index)
        entries, count = ring.episodes_after(0, 0)
        assert count == 100
        assert entries["task_index"].tolist() == list(range(92, 100))
        assert ring.episodes_after(0, 97)[0]["task_index"].tolist() == [97, 98, 99]
        assert len(ring.episodes_after(0, 100)[0]) == 0


def test_misuse_is_refused():
    with make_ring() as ring:
        writer = ring.writer(0)
        with pytest.raises(RuntimeError, match="begun"):
            add_decision(writer, 1)
        with pytest.raises(RuntimeError, match="commit"):
            writer.commit(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(3, np.float32))
        writer.begin(0)
        with pytest.raises(RuntimeError, match="the last episode is unfinished"):
            writer.begin(0)
        with pytest.raises(ValueError, match="logits"):
            add_decision(writer, 1, logits=np.zeros((4, 5), np.float32))
        for _ in range(6):
            add_decision(writer, 1)
        with pytest.raises(RuntimeError, match="terminated or truncated"):
            writer.commit(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(3, np.float32))
        with pytest.raises(ValueError, match="6 decisions"):
            add_decision(writer, 1)
        writer.abandon()
        write_episode(writer, 1, 1)
        with pytest.raises(ValueError, match=r"0\.\.0, got 1"):
            ring.writer(1)


def test_a_decision_is_over_at_its_end():
    with make_ring() as ring:
        writer = ring.writer(0)
        writer.begin(0)
        add_decision(writer, 1, last=True)
        with pytest.raises(RuntimeError, match="has not ended"):
            add_decision(writer, 2)


@pytest.mark.parametrize("executed", [0, 3])
def test_executed_must_be_between_one_and_the_chunk_size(executed):
    with make_ring() as ring:
        writer = ring.writer(0)
        writer.begin(0)
        with pytest.raises(ValueError, match=f"1\\.\\.2, got {executed}"):
            writer.add(
                frames=np.zeros((1, 4, 4, 3), np.uint8),
                state=np.zeros(3, np.float32),
                tokens=np.zeros(4, np.int16),
                logprobs=np.zeros(4, np.float32),
                value=0.0,
                reward=0.0,
                executed=executed,
                terminated=False,
                truncated=False,
                policy_version=0,
            )


@pytest.mark.parametrize("decisions", [1, 7, 100, 2000])
@pytest.mark.parametrize("num_envs", [1, 3, 4])
def test_the_capacity_for_so_many_decisions_is_the_smallest_that_is_sure_to_hold_them(decisions, num_envs):
    capacity = capacity_for(decisions, num_envs=num_envs, max_episode_decisions=6)

    def held(rows):
        specs = ObservationSpec(num_images=0, image_size=0, state_dim=3), ACTION
        return RingLayout(*specs, num_envs, rows, 6, store_logits=False).guaranteed_decisions

    assert held(capacity) >= decisions
    if capacity > smallest_capacity(num_envs=num_envs, max_episode_decisions=6):
        assert held(capacity - 1) < decisions


def test_one_row_always_remains_at_the_smallest_capacity():
    with make_ring(capacity=14) as ring:
        assert ring.layout.guaranteed_decisions == 1
        writer, rng = ring.writer(0), np.random.default_rng(0)
        write_episode(writer, 0, 6)
        for _ in range(200):
            length = int(rng.integers(1, 7))
            writer.begin(0)
            for index in range(length):
                add_decision(writer, index, last=index == length - 1)
            entries, _ = ring.episodes_after(0, 0)
            present = ring.intact(np.zeros(len(entries), np.int64), entries["first_row"])
            assert entries["length"][present].sum() >= 1
            writer.commit(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(3, np.float32))


def test_writing_a_row_allocates_next_to_nothing():
    observation = ObservationSpec(num_images=1, image_size=224, state_dim=3)
    with make_ring(capacity=400, longest=199, observation=observation) as ring:
        writer = ring.writer(0)
        frames, numbers = np.zeros((1, 224, 224, 3), np.uint8), np.zeros(4, np.float32)
        writer.begin(0)
        tracemalloc.start()
        try:
            for _ in range(100):
                writer.add(
                    frames=frames,
                    state=numbers[:3],
                    tokens=numbers,
                    logprobs=numbers,
                    value=0.0,
                    reward=0.0,
                    executed=1,
                    terminated=False,
                    truncated=False,
                    policy_version=0,
                )
            assert tracemalloc.get_traced_memory()[1] < 10_000  # a frame has 150528 bytes
        finally:
            tracemalloc.stop()
