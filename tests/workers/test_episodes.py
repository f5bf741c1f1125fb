from itertools import islice

from vla_rl.workers.episodes import training_schedule


def first(count, **changes):
    settings = {"seed": 0, "env_index": 0, "num_envs": 2, "num_init_states": [None, None, None]}
    return list(islice(training_schedule(**(settings | changes)), count))


def test_tasks_are_dealt_out_over_the_slots():
    assert [job.task_index for job in first(4, env_index=0)] == [0, 2, 0, 2]
    assert [job.task_index for job in first(4, env_index=1)] == [1, 1, 1, 1]


def test_more_slots_than_tasks_share_them():
    tasks = [first(1, env_index=index, num_envs=5, num_init_states=[None, None])[0].task_index for index in range(5)]
    assert tasks == [0, 1, 0, 1, 0]


def test_a_schedule_depends_on_seed_and_slot_alone():
    assert first(5) == first(5)
    assert first(5) != first(5, seed=1)
    assert [job.init_state for job in first(5)] != [job.init_state for job in first(5, env_index=1)]


def test_a_schedule_can_be_entered_anywhere():
    assert first(6)[4:] == first(2, first_episode=4)


def test_initial_states_stay_within_their_number():
    assert {job.init_state for job in first(200, num_init_states=[3, 3, 3])} == {0, 1, 2}
