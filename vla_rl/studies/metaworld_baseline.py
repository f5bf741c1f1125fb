"""What uniformly random actions earn: the zero of the normalised score."""

from __future__ import annotations

import numpy as np

from vla_rl.envs.build import build_metaworld
from vla_rl.envs.metaworld import ACTION_DIM, HORIZON
from vla_rl.recipe import METAWORLD_TASKS

EPISODES = 20


def random_return(task: str, *, episodes: int = EPISODES) -> float:
    """Mean return of uniform actions in [-1, 1] over initial states 0 .. episodes - 1, in the benchmark's units."""
    env = build_metaworld(name=task, task_id=METAWORLD_TASKS.index(task), horizon=HORIZON, chunk_size=HORIZON)
    generator = np.random.default_rng(0)
    returns = []
    for init_state in range(episodes):
        env.reset(init_state)
        actions = generator.uniform(-1.0, 1.0, (HORIZON, ACTION_DIM)).astype(np.float32)
        returns.append(env.step_chunk(actions).reward)
    env.close()
    return float(np.mean(returns))
