from itertools import islice
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vla_rl.workers.episodes import task_of_episode, training_schedule


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
