"""Whole groups from the ring: complete, intact, kept, and not more often than allowed."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from replay_helpers import add_decision, assert_consistent, make_ring, signatures, write_episode

from vla_rl.credit import Group
from vla_rl.replay.group_sampler import GroupSampler
from vla_rl.replay.ring import ReplayRing
from vla_rl.replay.ring_file import load_ring, save_ring
from vla_rl.workers.episodes import Groups, group_schedule


def everyone(scores):
    return np.arange(len(scores))


def sampler_of(ring: ReplayRing, *, candidates=2, choose=everyone, max_uses=None, segment_length=4, seed=0):
    return GroupSampler(
        ring, segment_length=segment_length, seed=seed, candidates=candidates, choose=choose, max_uses=max_uses,
        recent_groups=3,
    )  # fmt: skip


def write_group(ring: ReplayRing, group: int, *, first: int, length=2, version=0, truncate=False) -> None:
    """Two episodes, one in each of two envs, with signatures `first` and `first` + 50 and following."""
    for env in range(2):
        write_episode(
            ring.writer(env), first + 50 * env, length, group=group, version=version, truncate=truncate, task=group
        )


def groups_in(batch) -> list[int]:
    return list(dict.fromkeys(batch.group.tolist()))


def test_only_complete_groups_are_sampled_and_with_all_segments_of_all_members():
    with make_ring(num_envs=2, capacity=160) as ring:
        sampler = sampler_of(ring, segment_length=2)
        write_episode(ring.writer(0), 100, 5, group=7)
        write_episode(ring.writer(0), 300, 2)  # of no group
        sampler.refresh()
        assert sampler.sample(1) is None
        assert sampler.num_decisions == 7
        write_episode(ring.writer(1), 200, 3, group=7)
        sampler.refresh()
        batch = sampler.sample(1)
        assert_consistent(batch)
        assert signatures(batch) == [[100, 101], [102, 103], [104], [200, 201], [202]]
        assert batch.group.tolist() == [7] * 5
        assert batch.episode.tolist()[:3] == [batch.episode[0]] * 3
        assert batch.episode.tolist()[3:] == [batch.episode[3]] * 2
        assert batch.episode[0] != batch.episode[3]
        assert sampler.sample(2) is None


def test_a_batch_holds_different_groups_and_all_are_drawn_equally_often():
    with make_ring(num_envs=2, capacity=160) as ring:
        sampler = sampler_of(ring)
        for group in range(1, 5):
            write_group(ring, group, first=100 * group)
        sampler.refresh()
        drawn = [groups_in(sampler.sample(2)) for _ in range(600)]
        assert all(len(set(groups)) == 2 for groups in drawn)
        counts = np.bincount(np.concatenate(drawn))[1:]
        assert (np.abs(counts - 300) < 6 * np.sqrt(600 * 0.25)).all()


def test_the_judge_sees_the_returns_of_a_complete_group_once_and_chooses_its_members():
    seen = []

    def second_and_third(scores):
        seen.append(scores.tolist())
        return np.array([1, 2])

    with make_ring(num_envs=1, capacity=160) as ring:
        sampler = sampler_of(ring, candidates=3, choose=second_and_third)
        for first in (100, 200, 300):
            assert not seen
            write_episode(ring.writer(0), first, 2, group=9)
            sampler.refresh()
        assert seen == [[100.25 + 101.25, 200.25 + 201.25, 300.25 + 301.25]]
        assert signatures(sampler.sample(1)) == [[200, 201], [300, 301]]
        assert sampler.num_unused == 2
        sampler.refresh()
        assert len(seen) == 1


def test_groups_that_are_left_out_are_counted_with_their_decisions():
    with make_ring(num_envs=2, capacity=200) as ring:
        sampler = sampler_of(ring, choose=lambda scores: None if scores.mean() > 500 else everyone(scores))
        write_group(ring, 1, first=100)
        write_group(ring, 2, first=300, length=3)
        write_group(ring, 3, first=400, truncate=True)
        write_group(ring, 4, first=110)
        sampler.refresh()
        assert [(it.is_kept, it.all_succeeded, it.all_failed) for it in sampler.outcomes] == [
            (False, True, False), (False, False, True), (True, True, False),
        ]  # fmt: skip
        assert len(sampler.rejected) == 2
        assert sampler.num_unused == 2 * 3 + 2 * 2
        assert sampler.num_usable == 2
        assert sorted(groups_in(sampler.sample(2))) == [1, 4]
        assert not sampler.rejected


def test_a_group_leaves_with_the_first_row_that_is_overwritten():
    with make_ring(num_envs=2, capacity=28) as ring:
        sampler = sampler_of(ring)
        write_group(ring, 1, first=100, length=6)
        write_episode(ring.writer(0), 300, 6, group=2)
        sampler.refresh()
        assert groups_in(sampler.sample(1)) == [1]
        write_episode(ring.writer(0), 400, 1, group=3)  # overwrites the beginning of group 1's member in env 0
        assert sampler.sample(1) is None
        assert sampler.num_unused == 0  # it was learned from
        write_episode(ring.writer(0), 500, 6, group=4)
        sampler.refresh()
        assert sampler.num_unused == 6  # group 2 can never be complete
        write_episode(ring.writer(1), 600, 6, group=2)
        sampler.refresh()
        assert sampler.sample(1) is None


def test_a_group_with_a_decision_that_is_too_old_is_excluded():
    with make_ring(num_envs=2, capacity=160) as ring:
        sampler = sampler_of(ring)
        write_episode(ring.writer(0), 100, 2, group=1, version=3)
        write_episode(ring.writer(1), 200, 2, group=1, version=9)
        write_group(ring, 2, first=300, version=5)
        sampler.refresh()
        assert sampler.sample(2, min_version=4) is None
        assert groups_in(sampler.sample(1, min_version=4)) == [2]
        assert sampler.num_excluded == 2
        assert sampler.sample(2, min_version=3) is not None


def test_a_group_is_used_as_often_as_allowed_the_first_complete_first():
    with make_ring(num_envs=2, capacity=160) as ring:
        sampler = sampler_of(ring, max_uses=2)
        for group in (5, 3, 8):
            write_group(ring, group, first=100 * group)
        sampler.refresh()
        assert [groups_in(sampler.sample(1)) for _ in range(6)] == [[5], [3], [8], [5], [3], [8]]
        assert sampler.sample(1) is None


def test_a_saved_sampler_remembers_how_often_groups_were_used():
    with make_ring(num_envs=2, capacity=160) as ring:
        first, second = sampler_of(ring, max_uses=1), sampler_of(ring, max_uses=1)
        for group in (1 << 62, 2):
            write_group(ring, group, first=100)
        first.refresh()
        assert groups_in(first.sample(1)) == [1 << 62]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        second.refresh()
        assert groups_in(second.sample(1)) == [2]
        assert second.sample(1) is None


def test_a_resumed_sampler_counts_only_the_groups_left_out_since_the_last_batch():
    with make_ring(num_envs=2, capacity=200) as ring:
        first, second = (
            sampler_of(ring, choose=lambda scores: None if scores.mean() > 500 else everyone(scores)) for _ in range(2)
        )
        for group, level in ((1, 600), (2, 650), (3, 100), (4, 700)):
            write_group(ring, group, first=level)
            first.refresh()
            if group == 3:
                assert first.sample(1) is not None
        assert len(first.rejected) == 1
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        second.refresh()
        assert second.rejected == first.rejected
        write_group(ring, 5, first=800)
        second.refresh()
        assert len(second.rejected) == 2


CANDIDATES, LONGEST = 16, 25


def play_group(ring: ReplayRing, schedules, random) -> list[int]:
    """Play 16 episodes on slots that work side by side, and commit each when it ends; lengths of the successes.

    With probability 0.7 an episode succeeds, after 8 to 19 decisions, and scores 1; a failure lasts 25 decisions.
    """
    is_success = random.random((len(schedules), CANDIDATES // len(schedules))) < 0.7
    lengths = np.where(is_success, random.integers(8, 20, is_success.shape), LONGEST)
    ends = lengths.cumsum(axis=1)  # a slot begins its next episode when the last one ends
    for index in np.argsort(ends, axis=None, kind="stable"):
        slot, turn = np.unravel_index(index, ends.shape)
        job = next(schedules[slot])
        writer = ring.writer(int(slot))
        writer.begin(0, group=job.group, member=job.member)
        for rest in range(int(lengths[slot, turn]), 0, -1):
            ends_well = bool(rest == 1 and is_success[slot, turn])
            add_decision(writer, 1, last=rest == 1, truncate=not ends_well, reward=float(ends_well))
        writer.commit(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(3, np.float32))
    return lengths[is_success].tolist()


@pytest.mark.parametrize(("slots", "resumed_on"), [(16, None), (4, None), (16, 1)])
def test_a_balanced_choice_does_not_prefer_short_successes(slots, resumed_on, tmp_path):
    """All successes and the chosen ones have the same mean length, within four standard errors of the difference.

    Lengths of 8 to 19 have the deviation sqrt(143 / 12) = 3.45. Chosen are about four successes of each group, of
    eleven. Choosing those that end first would make them about three decisions shorter.
    """
    credit = Group.model_validate({"name": "group", "size": 8, "oversample": "balanced", "candidates": CANDIDATES})
    random, everyone_who_succeeded, chosen = np.random.default_rng(3), [], []
    schedules = [
        group_schedule(Groups(CANDIDATES, slots, 10**6), seed=0, env_index=env, num_envs=slots, num_init_states=[None])
        for env in range(slots)
    ]
    with (
        make_ring(num_envs=slots, capacity=30_000, longest=LONGEST) as ring,
        make_ring(num_envs=resumed_on or 1, capacity=30_000, longest=LONGEST) as other,
    ):
        for _ in range(50):
            everyone_who_succeeded += play_group(ring, schedules, random)
        if resumed_on:
            save_ring(ring, tmp_path / "ring.safetensors", tasks=["task"])
            load_ring(other, tmp_path / "ring.safetensors", tasks=["task"])
        sampler = sampler_of(
            other if resumed_on else ring, candidates=CANDIDATES, choose=credit.choose, segment_length=LONGEST
        )
        sampler.refresh()
        batch = sampler.sample(sampler.num_usable)
        chosen = batch.mask.sum(axis=1)[batch.rewards.sum(axis=1) == 1]
    assert sampler.num_usable >= 45
    assert len(chosen) >= 4 * 40
    error = math.sqrt(143 / 12) * math.sqrt(1 / len(chosen) - 1 / len(everyone_who_succeeded))
    assert abs(chosen.mean() - np.mean(everyone_who_succeeded)) < 4 * error


def test_the_judge_sees_members_by_number_whichever_ends_first():
    for order in itertools.permutations(range(3)):
        seen = []
        with make_ring(num_envs=2, capacity=160) as ring:
            sampler = sampler_of(ring, candidates=3, choose=lambda scores, seen=seen: seen.extend(scores))
            for member in order:
                write_episode(ring.writer(member % 2), 100 * member, 1, group=9, member=member)
            sampler.refresh()
        assert seen == [0.25, 100.25, 200.25]
