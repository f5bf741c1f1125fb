import numpy as np
import pytest

from vla_rl.envs.toy import GOAL_RADIUS, SHAPING, SPEED, ToyEnv


def towards_goal(state):
    return np.clip((state[2:] - state[:2]) / SPEED, -1.0, 1.0)[None].astype(np.float32)


def test_walking_straight_to_the_goal_terminates_with_reward_one_and_the_shaping_of_the_way():
    env = ToyEnv(horizon=50)
    observation = env.reset(5)
    start = np.linalg.norm(observation.state[:2] - observation.state[2:])
    total = 0.0
    result = None
    while result is None or not result.terminated:
        result = env.step_chunk(towards_goal(observation.state))
        observation = result.observation
        total += result.reward
    end = np.linalg.norm(observation.state[:2] - observation.state[2:])
    assert not result.truncated
    assert end < GOAL_RADIUS
    assert total == pytest.approx(1.0 + SHAPING * (start - end), abs=1e-6)


def test_an_action_of_one_moves_the_point_by_speed_and_larger_ones_are_clipped():
    env = ToyEnv()
    before = env.reset(0).state
    sign = -np.sign(before[:2])  # towards the middle, so that no wall is met
    after = env.step_chunk((3.0 * sign)[None].astype(np.float32)).observation.state
    assert after[:2] - before[:2] == pytest.approx(SPEED * sign, abs=1e-6)
    assert np.array_equal(after[2:], before[2:])


def test_standing_still_is_truncated_at_the_horizon_without_reward():
    env = ToyEnv(horizon=5, chunk_size=2)
    env.reset(0)
    still = np.zeros((2, 2), np.float32)
    first, second, third = (env.step_chunk(still) for _ in range(3))
    assert [r.executed for r in (first, second, third)] == [2, 2, 1]
    assert [r.truncated for r in (first, second, third)] == [False, False, True]
    assert not third.terminated
    assert third.reward == 0.0


def test_success_inside_a_chunk_leaves_the_rest_unexecuted():
    env = ToyEnv(horizon=50, chunk_size=20)
    state = env.reset(1).state
    result = env.step_chunk(np.repeat(towards_goal(state), 20, axis=0))
    assert result.terminated
    assert 1 <= result.executed < 20


def test_success_in_the_last_step_of_the_horizon_is_success_and_not_truncation():
    def steps_to_goal(horizon):
        env = ToyEnv(horizon=horizon)
        state = env.reset(3).state
        for count in range(1, horizon + 1):
            result = env.step_chunk(towards_goal(state))
            state = result.observation.state
            if result.terminated or result.truncated:
                return count, result
        raise AssertionError("neither ended")

    needed, _ = steps_to_goal(50)
    count, result = steps_to_goal(needed)
    assert count == needed
    assert (result.terminated, result.truncated) == (True, False)


def test_the_same_arguments_give_the_same_episode_and_others_another():
    starts = {tuple(ToyEnv(task).reset(init, seed=seed).state) for task in (0, 1) for init in (0, 1) for seed in (0, 1)}
    assert len(starts) == 8
    assert np.array_equal(ToyEnv(1).reset(4, seed=2).state, ToyEnv(1).reset(4, seed=2).state)


def test_no_episode_starts_at_its_goal():
    env = ToyEnv()
    states = np.array([env.reset(i).state for i in range(300)])
    assert np.linalg.norm(states[:, :2] - states[:, 2:], axis=1).min() >= 0.5
    assert np.abs(states).max() <= 1.0


def test_there_are_no_frames():
    assert ToyEnv().reset(0).frames.shape == (0, 0, 0, 3)


def test_a_chunk_that_is_too_long_and_a_step_without_a_reset_are_refused():
    env = ToyEnv(chunk_size=2)
    with pytest.raises(RuntimeError, match="before reset"):
        env.step_chunk(np.zeros((1, 2), np.float32))
    env.reset(0)
    with pytest.raises(ValueError, match=r"\(1..2, 2\)"):
        env.step_chunk(np.zeros((3, 2), np.float32))


def test_step_seconds_are_slept_in_every_control_step(monkeypatch):
    slept = []
    monkeypatch.setattr("vla_rl.envs.toy.time.sleep", slept.append)
    env = ToyEnv(step_seconds=0.25)
    env.reset(0)
    env.step_chunk(np.zeros((2, 2), np.float32))
    assert slept == [0.25, 0.25]
