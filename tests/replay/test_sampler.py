from __future__ import annotations

import json
import multiprocessing
import time
from multiprocessing.synchronize import Event

import numpy as np
from replay_helpers import add_decision, assert_consistent, make_ring, signatures, write_episode

from vla_rl.replay.ring import ReplayRing, RingHandle
from vla_rl.replay.sampler import SegmentSampler
from vla_rl.types import ObservationSpec


def sampler_of(ring: ReplayRing, *, segment_length=4, seed=0) -> SegmentSampler:
    sampler = SegmentSampler(ring, segment_length=segment_length, seed=seed)
    sampler.refresh()
    return sampler


def write_fast(handle: RingHandle, stop: Event) -> None:
    writer = ReplayRing.attach(handle).writer(0)
    first = 0
    while not stop.is_set():
        length = 1 + first % 6
        write_episode(writer, first, length, version=first)
        first = (first + 7) % 30000


def test_an_empty_ring_has_nothing_to_sample():
    with make_ring() as ring:
        sampler = sampler_of(ring)
        assert sampler.sample(4) is None
        assert sampler.num_decisions == sampler.num_segments == sampler.total_committed == 0


def test_episodes_are_cut_into_fixed_pieces_that_never_cross_an_episode():
    with make_ring(longest=10, capacity=80) as ring:
        writer = ring.writer(0)
        for first, length in ((100, 10), (200, 4), (300, 3)):
            write_episode(writer, first, length)
        sampler = sampler_of(ring)
        assert (sampler.num_segments, sampler.num_decisions) == (5, 17)
        batch = sampler.sample(200)
        assert_consistent(batch)
        assert sorted({tuple(segment) for segment in signatures(batch)}) == [
            (100, 101, 102, 103),
            (104, 105, 106, 107),
            (108, 109),
            (200, 201, 202, 203),
            (300, 301, 302),
        ]


def test_the_bootstrap_observation_follows_the_last_decision():
    with make_ring(longest=6, capacity=80) as ring:
        write_episode(ring.writer(0), 100, 6, truncate=True)
        batch = sampler_of(ring).sample(50)
        for b, segment in enumerate(signatures(batch)):
            expected = {(100, 101, 102, 103): 104, (104, 105): 106}[tuple(segment)]  # next decision's, last observation
            assert batch.state[b, len(segment)].tolist() == [expected] * 3
            assert (batch.frames[b, len(segment)] == expected).all()
            assert (batch.state[b, len(segment) + 1 :] == 0).all()


def test_only_the_last_decision_of_an_episode_carries_its_end():
    with make_ring(longest=6, capacity=80) as ring:
        writer = ring.writer(0)
        write_episode(writer, 100, 6, truncate=True)
        write_episode(writer, 200, 4)
        batch = sampler_of(ring).sample(50)
        for b, segment in enumerate(signatures(batch)):
            length = len(segment)
            assert batch.truncated[b, :length].tolist() == [signature == 105 for signature in segment]
            assert batch.terminated[b, :length].tolist() == [signature == 203 for signature in segment]


def test_task_and_version_belong_to_the_segment():
    with make_ring() as ring:
        writer = ring.writer(0)
        write_episode(writer, 100, 2, task=5, version=11)
        write_episode(writer, 200, 2, task=6, version=12)
        batch = sampler_of(ring).sample(30)
        for b, segment in enumerate(signatures(batch)):
            assert batch.task_index[b] == {100: 5, 200: 6}[segment[0]]
            assert batch.policy_version[b].tolist() == [{100: 11, 200: 12}[segment[0]]] * 2 + [0, 0]
        assert batch.task_index.dtype == batch.policy_version.dtype == np.int64


def test_logits_are_returned_if_the_ring_stores_them():
    logits = np.arange(20, dtype=np.float32).reshape(4, 5)
    with make_ring(store_logits=True) as ring:
        write_episode(ring.writer(0), 100, 2, logits=logits)
        batch = sampler_of(ring).sample(1)
        np.testing.assert_array_equal(batch.behavior_logits[0], [logits, logits, 0 * logits, 0 * logits])
    with make_ring() as ring:
        write_episode(ring.writer(0), 100, 2)
        assert sampler_of(ring).sample(1).behavior_logits is None


def test_state_only_observations_have_empty_frames():
    with make_ring(observation=ObservationSpec(num_images=0, image_size=0, state_dim=3)) as ring:
        write_episode(ring.writer(0), 100, 2)
        batch = sampler_of(ring).sample(3)
        assert batch.frames.shape == (3, 5, 0, 0, 0, 3)
        assert_consistent(batch)


def test_the_ring_wraps_around_with_episodes_of_different_lengths():
    rng = np.random.default_rng(3)
    with make_ring(num_envs=2, capacity=60) as ring:
        writers, sampler = [ring.writer(0), ring.writer(1)], sampler_of(ring)
        first, total = 0, 0
        for step in range(300):
            length = int(rng.integers(1, 7))
            write_episode(writers[step % 2], first, length)
            first, total = first + 10, total + length
            sampler.refresh()
            batch = sampler.sample(5)
            assert_consistent(batch)
            assert sampler.total_committed == total
            assert ring.layout.guaranteed_decisions <= sampler.num_decisions or step < 30
            oldest_possible = first - 10 * 30  # 60 rows hold at most 30 episodes
            assert min(segment[0] for segment in signatures(batch)) >= oldest_possible


def test_age_counts_the_decisions_committed_afterwards():
    with make_ring(num_envs=2, capacity=80) as ring:
        sampler = sampler_of(ring)
        write_episode(ring.writer(1), 100, 3)
        write_episode(ring.writer(0), 200, 5)  # committed second although its env comes first
        sampler.refresh()
        batch = sampler.sample(60)
        ages = {
            signature: int(age)
            for segment, row in zip(signatures(batch), batch.age, strict=True)
            for signature, age in zip(segment, row, strict=False)
        }
        assert ages == {100: 7, 101: 6, 102: 5, 200: 4, 201: 3, 202: 2, 203: 1, 204: 0}
        write_episode(ring.writer(0), 300, 2)
        sampler.refresh()
        batch = sampler.sample(60)
        row = next(b for b, segment in enumerate(signatures(batch)) if segment[0] == 100)
        assert batch.age[row].tolist() == [9, 8, 7, 0]


def test_a_segment_is_excluded_by_its_oldest_decision():
    with make_ring(longest=6, capacity=80) as ring:
        writer = ring.writer(0)
        writer.begin(0)
        for index, version in enumerate([3, 4, 4, 4, 5, 5]):  # the policy moved on within the episode
            add_decision(writer, 100 + index, version=version, last=index == 5)
        writer.commit(np.zeros((1, 4, 4, 3), np.uint8), np.full(3, 106, np.float32))
        sampler = sampler_of(ring)
        for min_version, expected, excluded in (
            (None, {100, 104}, 0),
            (3, {100, 104}, 0),
            (4, {104}, 1),
            (5, {104}, 1),
        ):
            batch = sampler.sample(40, min_version=min_version)
            assert {segment[0] for segment in signatures(batch)} == expected
            assert sampler.num_excluded == excluded
        assert sampler.sample(40, min_version=6) is None
        assert sampler.num_excluded == 2


def test_segments_are_drawn_uniformly_whatever_their_length_and_env():
    with make_ring(num_envs=2, capacity=80) as ring:
        write_episode(ring.writer(0), 100, 6)
        write_episode(ring.writer(0), 200, 1)
        write_episode(ring.writer(1), 300, 5)
        batch = sampler_of(ring, seed=1).sample(5000)
        counts = np.unique([segment[0] for segment in signatures(batch)], return_counts=True)[1]
        assert len(counts) == 5
        chi_square = ((counts - 1000.0) ** 2 / 1000.0).sum()
        assert chi_square < 13.3  # 99th percentile of chi-square with 4 degrees of freedom


def test_overwritten_segments_leave_the_index_even_without_a_refresh(monkeypatch):
    with make_ring(capacity=14) as ring:
        writer = ring.writer(0)
        write_episode(writer, 100, 6)
        write_episode(writer, 200, 6)
        sampler = sampler_of(ring)
        assert sampler.num_decisions == 12
        write_episode(writer, 300, 1)  # over rows 0 and 1: the first segment of episode 100 only
        copy, copies = sampler._copy, []
        monkeypatch.setattr(sampler, "_copy", lambda segments: copies.append(1) or copy(segments))
        firsts = {segment[0] for segment in signatures(sampler.sample(100))}
        assert firsts == {104, 200, 204}
        assert len(copies) == 1  # what is known to be lost is not copied first
        assert sampler.num_decisions == 8
        sampler.refresh()
        assert sampler.num_decisions == 9
        assert sampler.total_committed == 13


def test_a_segment_overwritten_while_it_is_copied_is_drawn_again(monkeypatch):
    with make_ring(capacity=14) as ring:
        writer = ring.writer(0)
        write_episode(writer, 100, 6)
        write_episode(writer, 200, 6)
        sampler = sampler_of(ring, segment_length=6)
        copy, copies = sampler._copy, []

        def overwrite_after_copying(segments):
            batch = copy(segments)
            copies.append({segment[0] for segment in signatures(batch)})
            if len(copies) == 1:
                write_episode(writer, 300, 1)
            return batch

        monkeypatch.setattr(sampler, "_copy", overwrite_after_copying)
        batch = sampler.sample(20)
        assert copies == [{100, 200}, {200}]
        assert {segment[0] for segment in signatures(batch)} == {200}
        assert_consistent(batch)


def test_nothing_is_returned_if_everything_was_overwritten_while_it_was_copied(monkeypatch):
    with make_ring(capacity=14) as ring:
        writer = ring.writer(0)
        write_episode(writer, 100, 6)
        sampler = sampler_of(ring)
        copy = sampler._copy

        def overwrite_all(segments):
            batch = copy(segments)
            write_episode(writer, 200, 6)
            write_episode(writer, 300, 6)
            return batch

        monkeypatch.setattr(sampler, "_copy", overwrite_all)
        assert sampler.sample(4) is None


def test_a_reader_that_fell_far_behind_takes_up_what_is_still_there():
    with make_ring(capacity=14) as ring:
        writer, sampler = ring.writer(0), sampler_of(ring)
        for index in range(100):
            write_episode(writer, index, 1)
        sampler.refresh()
        assert sampler.total_committed == 100
        assert sampler.num_decisions == 7
        batch = sampler.sample(100)
        assert {(segment[0], int(age)) for segment, age in zip(signatures(batch), batch.age[:, 0], strict=True)} == {
            (99 - k, k) for k in range(7)
        }


def test_the_random_state_survives_json():
    with make_ring(longest=6, capacity=80) as ring:
        for first in range(100, 1000, 100):
            write_episode(ring.writer(0), first, 6)
        sampler = sampler_of(ring, seed=5)
        sampler.sample(10)
        state = json.loads(json.dumps(sampler.state_dict()))
        expected = signatures(sampler.sample(10))
        other = sampler_of(ring, seed=6)
        assert signatures(other.sample(10)) != expected
        other.load_state_dict(state)
        assert signatures(other.sample(10)) == expected


def test_a_reader_racing_a_fast_writer_never_returns_a_mixed_row():
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with make_ring(capacity=14) as ring:  # so small that segments are overwritten all the time
        writer = context.Process(target=write_fast, args=(ring.handle, stop))
        writer.start()
        sampler = SegmentSampler(ring, segment_length=4, seed=0)
        num_batches = 0
        try:
            deadline = time.monotonic() + 60
            # On a busy machine one of the two may sleep through the other's work: go on until they really race.
            while (num_batches < 200 or sampler.total_committed <= 500) and time.monotonic() < deadline:
                sampler.refresh()
                batch = sampler.sample(3)
                if batch is not None:
                    assert_consistent(batch)
                    firsts = [segment[0] for segment in signatures(batch)]
                    # An episode's version is its first signature, a multiple of 7: a stale version would show.
                    assert all(
                        first - version in (0, 4)
                        for first, version in zip(firsts, batch.policy_version[:, 0], strict=True)
                    )
                    num_batches += 1
        finally:
            stop.set()
            writer.join(30)
        assert writer.exitcode == 0
        assert num_batches >= 200
        assert sampler.total_committed > 500  # the race was real


def test_the_segments_of_an_episode_and_the_episodes_of_a_group_are_known_by_their_numbers():
    with make_ring(num_envs=2, longest=6, capacity=80) as ring:
        write_episode(ring.writer(0), 100, 6, group=9)
        write_episode(ring.writer(1), 200, 6, group=9)
        write_episode(ring.writer(1), 300, 2)
        batch = sampler_of(ring).sample(50)
        firsts = [segment[0] // 100 for segment in signatures(batch)]
        assert dict(zip(firsts, batch.group.tolist(), strict=True)) == {1: 9, 2: 9, 3: 0}
        assert len(set(zip(firsts, batch.episode.tolist(), strict=True))) == len(set(batch.episode.tolist())) == 3
