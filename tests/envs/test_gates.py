"""Gates: a success probability that is known, and episodes that end as they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_rl.envs.gates import GatesEnv


def act(direction: float) -> np.ndarray:
    return np.array([[direction]], dtype=np.float32)


def direction_of(state: np.ndarray) -> float:
    return math.atan2(state[1], state[0]) / math.pi


@pytest.mark.parametrize("share", [0.1, 0.5, 0.974, 1.0])
@pytest.mark.parametrize("init_state", range(3))
def test_every_gate_lets_its_share_of_all_directions_pass(share, init_state):
    env, passed = GatesEnv(gates=1, open=share), 0
    for direction in np.linspace(-1.0, 1.0, 2000, endpoint=False):
        env.reset(init_state)
        passed += env.step_chunk(act(direction)).terminated
    assert passed / 2000 == pytest.approx(share, abs=1e-3)


def test_random_directions_pass_all_gates_with_the_product_of_their_shares():
    """0.5^2 = 1/4; 4,000 episodes have a deviation of 0.007."""
    env, generator, successes = GatesEnv(gates=2, open=0.5), np.random.default_rng(0), 0
    for episode in range(4000):
        env.reset(episode)
        env.step_chunk(act(generator.uniform(-1.0, 1.0)))
        successes += env.step_chunk(act(generator.uniform(-1.0, 1.0))).terminated
    assert successes / 4000 == pytest.approx(0.25, abs=0.03)


def test_an_episode_that_passes_all_gates_terminates_at_the_last_with_reward_one():
    env = GatesEnv(gates=3, open=0.1)
    state, results = env.reset(7).state, []
    for _ in range(3):
        results.append(env.step_chunk(act(direction_of(state))))
        state = results[-1].observation.state
    assert [result.reward for result in results] == [0.0, 0.0, 1.0]
    assert [result.terminated for result in results] == [False, False, True]
    assert not any(result.truncated for result in results)
    assert state[2:].tolist() == [1.0, 1.0]


def test_one_missed_gate_fails_the_episode_which_goes_on_to_its_end():
    env = GatesEnv(gates=3, open=0.5)
    state, results = env.reset(7).state, []
    for gate in range(3):
        direction = direction_of(state) if gate else (direction_of(state) + 2.0) % 2.0 - 1.0  # opposite at the first
        results.append(env.step_chunk(act(direction)))
        state = results[-1].observation.state
    assert [result.observation.state[3] for result in results] == [0.0] * 3
    assert [result.reward for result in results] == [0.0] * 3
    assert [result.truncated for result in results] == [False, False, True]
    assert not any(result.terminated for result in results)


def test_the_end_of_an_episode_is_told_in_python_s_own_bools():
    """Logs and checkpoints are JSON, which refuses numpy's."""
    env = GatesEnv(gates=1, open=0.5)
    env.reset(0)
    result = env.step_chunk(act(0.0))
    assert type(result.terminated) is bool
    assert type(result.truncated) is bool


def test_directions_close_in_a_circle():
    """A gate at 0.95 or beyond, open to 0.2 on each side, lets -0.99 pass: 2 - 1.94 = 0.06 away or less."""
    env = GatesEnv(gates=1, open=0.2)
    near = next(init for init in range(200) if direction_of(env.reset(init).state) > 0.95)
    env.reset(near)
    assert env.step_chunk(act(-0.99)).terminated
    env.reset(near)
    assert env.step_chunk(act(0.5)).truncated


def test_a_start_shows_its_first_gate_and_follows_from_its_arguments_alone():
    state = GatesEnv().reset(3, seed=5).state
    assert np.array_equal(state, GatesEnv(open=0.9).reset(3, seed=5).state)
    assert state[:2] @ state[:2] == pytest.approx(1.0, abs=1e-6)
    assert state[2:].tolist() == [0.0, 1.0]
    others = [GatesEnv().reset(4, seed=5), GatesEnv().reset(3, seed=6), GatesEnv(1).reset(3, seed=5)]
    assert not any(np.array_equal(state, other.state) for other in others)


def test_what_is_no_episode_is_refused():
    env = GatesEnv(gates=1)
    with pytest.raises(RuntimeError, match="before reset"):
        env.step_chunk(act(0.0))
    with pytest.raises(ValueError, match="count from 0"):
        env.reset(-1)
    env.reset(0)
    with pytest.raises(ValueError, match=r"must be \(1, 1\), got \(2, 1\)"):
        env.step_chunk(np.zeros((2, 1), dtype=np.float32))
    env.step_chunk(act(0.0))
    with pytest.raises(RuntimeError, match="after the end"):
        env.step_chunk(act(0.0))
