from collections import Counter
from itertools import islice
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vla_rl.workers.episodes import Groups, group_schedule, task_of_episode, training_schedule


def first(count, **changes):
    settings: dict[str, Any] = {"seed": 0, "env_index": 0, "num_envs": 2, "num_init_states": [None, None, None]}
    return list(islice(training_schedule(**(settings | changes)), count))


def tasks_of(env_index, count, *, num_envs, num_tasks):
    jobs = first(count, env_index=env_index, num_envs=num_envs, num_init_states=[None] * num_tasks)
    return [job.task_index for job in jobs]


def test_few_slots_walk_over_all_tasks_together():
    # Rounds of two slots on three tasks: 0 1, 2 0, 1 2.
    assert tasks_of(0, 4, num_envs=2, num_tasks=3) == [0, 2, 1, 0]
    assert tasks_of(1, 4, num_envs=2, num_tasks=3) == [1, 0, 2, 1]


def test_slots_that_can_be_dealt_out_evenly_keep_their_task_and_the_rest_walk():
    # Five slots on two tasks: four keep 0 1 0 1, the fifth takes 0, 1, 0, ...
    assert [tasks_of(slot, 3, num_envs=5, num_tasks=2) for slot in range(5)] == [
        [0, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]
    ]  # fmt: skip


@given(num_envs=st.integers(1, 40), num_tasks=st.integers(1, 12), rounds=st.integers(1, 25))
def test_after_any_round_no_task_was_played_more_than_once_more_than_another(num_envs, num_tasks, rounds):
    counts = [0] * num_tasks
    for episode in range(rounds):
        for slot in range(num_envs):
            counts[task_of_episode(episode, env_index=slot, num_envs=num_envs, num_tasks=num_tasks)] += 1
    assert max(counts) - min(counts) <= 1


def test_a_schedule_depends_on_seed_and_slot_alone():
    assert first(5) == first(5)
    assert first(5) != first(5, seed=1)
    assert [job.init_state for job in first(5)] != [job.init_state for job in first(5, env_index=1)]


def test_a_schedule_can_be_entered_anywhere():
    assert first(6)[4:] == first(2, first_episode=4)


def test_initial_states_stay_within_their_number():
    assert {job.init_state for job in first(200, num_init_states=[3, 3, 3])} == {0, 1, 2}


def in_groups(
    count, *, members=4, env_index=0, num_envs=6, slots_per_cell=6, played=(), max_lead=99, tasks=(), **changes
):
    """Jobs of a slot that has committed episodes of these groups; its mates have none, which hinders nobody here."""
    groups = Groups(members, slots_per_cell, max_lead, tasks)
    settings: dict[str, Any] = {"seed": 0, "num_envs": num_envs, "num_init_states": [None, None, None]} | changes
    newest = {env_index: list(played)[-groups.turns :]}
    schedule = group_schedule(groups, env_index=env_index, newest_groups=lambda env: newest.get(env, ()), **settings)
    return list(islice(schedule, count))


def test_a_team_is_as_many_slots_as_share_a_group_evenly():
    # 6 slots and 4 members: three teams of two slots, each slot plays two members of a group in turn.
    assert (Groups(4, 6, 2).team_size, Groups(4, 6, 2).turns) == (2, 2)
    assert (Groups(8, 16, 2).team_size, Groups(8, 16, 2).turns) == (8, 1)
    assert (Groups(8, 1, 2).team_size, Groups(8, 1, 2).turns) == (1, 8)
    assert (Groups(8, 20, 2).team_size, Groups(8, 20, 2).turns) == (4, 2)


@given(members=st.integers(2, 12), slots=st.integers(1, 12), cells=st.integers(1, 3), num_tasks=st.integers(1, 5))
def test_every_group_has_all_its_members_in_one_cell_and_they_have_one_start(members, slots, cells, num_tasks):
    rounds, played = 3, []
    groups = Groups(members, slots, 2)
    for env in range(cells * slots):
        jobs = in_groups(
            rounds * groups.turns, members=members, env_index=env, num_envs=cells * slots, slots_per_cell=slots,
            num_init_states=[None] * num_tasks,
        )  # fmt: skip
        played += [(job, env // slots) for job in jobs]
    starts = {job.group: (job.task_index, job.init_state, job.seed, cell) for job, cell in played}
    assert all(starts[job.group] == (job.task_index, job.init_state, job.seed, cell) for job, cell in played)
    numbers = Counter((job.group, job.member) for job, _ in played)
    assert numbers == Counter((group, member) for group in starts for member in range(members))
    assert len(starts) == len(set(starts.values())) == rounds * cells * slots // groups.team_size
    assert min(starts) > 0


def test_a_run_resumed_with_other_teams_begins_new_groups():
    """With 16 members, 8 slots are a team of two turns and 16 slots one of a single turn."""
    eight, sixteen = (
        in_groups(4, members=16, env_index=0, num_envs=slots, slots_per_cell=slots, num_init_states=[None])
        for slots in (8, 16)
    )
    assert not {job.group for job in eight} & {job.group for job in sixteen}


def test_groups_play_every_task_equally_often():
    teams = [in_groups(6, env_index=env, num_init_states=[5, 5])[::2] for env in (0, 2, 4)]
    assert Counter(job.task_index for jobs in teams for job in jobs) in ({0: 5, 1: 4}, {0: 4, 1: 5})
    assert all(job.init_state < 5 for jobs in teams for job in jobs)


def test_a_slot_goes_on_after_its_last_committed_episode():
    jobs = in_groups(9)
    for done in range(8):
        committed = [job.group for job in jobs[:done]]
        assert in_groups(9 - done, played=committed) == jobs[done:]
    assert in_groups(1, played=[0, 7, *(job.group for job in jobs[:2])]) == jobs[2:3]  # those of others say nothing


def test_a_resumed_run_without_its_ring_begins_a_new_group():
    jobs = in_groups(12)
    assert in_groups(4, first_episode=3) == jobs[4:8]
    assert in_groups(4, first_episode=4) == jobs[4:8]
    assert in_groups(5, first_episode=4, played=[job.group for job in jobs[:3]]) == jobs[3:8]  # others were faster
    assert in_groups(3, first_episode=4, played=[job.group for job in jobs[:5]]) == jobs[5:8]


def test_a_slot_resumed_before_its_first_episode_completes_the_groups_that_its_team_began():
    """Two slots, two turns each, one group of lead. The other slot has played two groups, and ran out of lead."""
    team = [in_groups(6, num_envs=2, slots_per_cell=2, env_index=env) for env in (0, 1)]
    committed = {0: [], 1: [job.group for job in team[1][:4]]}

    def resumed(env):
        return group_schedule(
            Groups(4, 2, 1), seed=0, env_index=env, num_envs=2, num_init_states=[None, None, None],
            first_episode=4, newest_groups=lambda env: committed[env],
        )  # fmt: skip

    slow, fast = resumed(0), resumed(1)
    assert next(fast) is None  # it still waits
    for expected in team[0][:4]:
        assert next(slow) == expected
        committed[0].append(expected.group)
    assert next(fast) == team[1][4]
    assert next(resumed(0)) == team[0][4]


def test_the_ring_remembers_what_a_slot_plays_while_another_of_its_team_plays_nothing():
    assert (Groups(4, 2, 1).memory, Groups(8, 8, 2).memory) == (4, 3)


def test_runs_with_other_groups_number_them_otherwise():
    ids = [
        {job.group for env in range(6) for job in in_groups(6, env_index=env, **changes)}
        for changes in (
            *({}, {"seed": 1}, {"members": 2}, {"num_envs": 12}, {"num_init_states": [None]}),
            *({"tasks": ["open"]}, {"tasks": ["close"]}, {"slots_per_cell": 10}),
        )
    ]
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_a_slot_waits_for_the_slowest_of_its_team():
    """Two slots, two turns each, and one group of lead: after two groups alone, the first waits for the second."""
    committed: dict[int, list[int]] = {0: [], 1: []}
    schedules = [
        group_schedule(
            Groups(4, 2, 1), seed=0, env_index=env, num_envs=2, num_init_states=[None],
            newest_groups=lambda env: committed[env][-4:],
        )
        for env in (0, 1)
    ]  # fmt: skip

    def play(env):
        job = next(schedules[env])
        if job is not None:
            committed[env].append(job.group)
        return job

    assert all(play(0) for _ in range(4))
    assert [play(0) for _ in range(3)] == [None] * 3
    assert play(1)
    assert play(0) is None  # the other has played one of its two turns
    assert play(1)
    assert play(0)
    assert committed[0][:2] == committed[1] == [committed[0][0]] * 2
