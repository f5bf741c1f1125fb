"""Stepping through our environment is stepping LIBERO's own, bit for bit and pixel by pixel."""

from typing import Literal

import numpy as np
import pytest

from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.seeds import reset_seed

pytestmark = pytest.mark.libero

CHUNK = 8
CHUNKS = 8
PHYSICS: tuple[Literal["exact", "fast"], ...] = ("exact", "fast")


def random_chunks(seed, chunks=CHUNKS):
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (chunks, CHUNK, 7)).astype(np.float32)


def compare(env, stock, task_id, init_state, seed, states):
    """Both run the same chunks in turns, in one process: neither may draw with the other's graphics."""
    observation = env.reset(init_state, seed=seed)
    if states is None:
        stock.start(reset_seed(seed, task_id, init_state))
    else:
        stock.start(seed, states[init_state])
    assert_same(env, stock, observation)
    for chunk in random_chunks(init_state):
        result = env.step_chunk(chunk)
        for action in chunk.astype(np.float64):
            stock.step(action)
        assert_same(env, stock, result.observation)


def assert_same(env, stock, observation):
    for ours, theirs in zip(env.physics_state(), stock.state(), strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(observation.frames, stock.frames())
    expected = stock.observation
    assert np.array_equal(observation.state[:3], expected["robot0_eef_pos"].astype(np.float32))
    assert np.array_equal(observation.state[6:], expected["robot0_gripper_qpos"].astype(np.float32))


@pytest.mark.parametrize("init_states", ["standard", "sampled"])
def test_sixty_four_random_steps_with_proxies_are_liberos_own(stock_libero, init_states):
    env = LiberoEnv("libero_spatial", 0, assets="proxy", image_size=128, init_states=init_states)
    stock = stock_libero("libero_spatial", 0, assets="proxy")
    compare(env, stock, 0, 3, 7, env._states)
    env.close()


def test_fast_physics_repeats_itself_and_stays_beside_exact_physics_until_things_touch():
    envs = {
        physics: LiberoEnv("libero_spatial", 0, assets="proxy", image_size=32, physics=physics) for physics in PHYSICS
    }
    states = {}
    for name, physics in (("exact", "exact"), ("fast", "fast"), ("again", "fast")):
        envs[physics].reset(3, seed=7)
        for chunk in random_chunks(5, chunks=3) * 0.2:
            envs[physics].step_chunk(chunk)
        states[name] = envs[physics].physics_state()[0]
    for env in envs.values():
        env.close()
    assert np.array_equal(states["fast"], states["again"])
    assert not np.array_equal(states["fast"], states["exact"])  # another order of solving: it would be exact otherwise
    difference = np.abs(states["fast"] - states["exact"])
    assert difference[:9].max() < 1e-8  # arm and fingers, in free space
    assert difference.max() < 1e-4
