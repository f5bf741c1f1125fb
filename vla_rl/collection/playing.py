"""One episode of the scripted expert, recorded as LIBERO's files store it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.collection.options import CollectOptions, Noise
from vla_rl.demos.hdf5 import EXECUTED, PICTURES
from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.expert import Expert
from vla_rl.types import Observation

MOTION = 3  # components of an action that are disturbed: x, y, z
_NOISE_STREAM = 1


@dataclass(frozen=True, slots=True)
class Played:
    """Episode that was played."""

    success: bool
    arrays: dict[str, NDArray[Any]]  # by key of the layout, one row per control step


class Disturbance:
    """Offsets of the motions of one episode."""

    def __init__(self, noise: Noise, generator: np.random.Generator) -> None:
        self._noise = noise
        self._generator = generator
        self._step = 0
        self._offset = np.zeros(MOTION)

    def disturb(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the action to execute, (7,), for what the expert wants to do; to be called in every control step."""
        noise, generator = self._noise, self._generator
        if self._step % noise.chunk == 0:
            offset = generator.normal(0.0, noise.chunk_scale, MOTION)
            self._offset = offset if generator.random() < noise.chunk_share else np.zeros(MOTION)
        self._step += 1
        executed = action.astype(np.float64)
        executed[:MOTION] += self._offset + generator.normal(0.0, noise.step_scale, MOTION)
        executed[:MOTION] = np.clip(executed[:MOTION], -1.0, 1.0)
        return executed.astype(np.float32)


def play(env: LiberoEnv, options: CollectOptions, attempt: int) -> Played:
    """Play one episode with the expert; everything random follows from the options' seed, task and attempt."""
    observation = env.reset(attempt, seed=options.seed)
    generator = np.random.default_rng([options.seed, env.task.task_id, attempt, _NOISE_STREAM])
    disturbance = Disturbance(options.noise, generator)
    expert = Expert(env)
    rows: list[dict[str, NDArray[Any]]] = []
    while True:
        row = row_of(env, observation)
        action = expert.action()
        executed = disturbance.disturb(action)
        result = env.step_chunk(executed[None])
        rows.append(row | {"actions": action.astype(np.float64), EXECUTED: executed.astype(np.float64)})
        observation = result.observation
        if result.terminated or result.truncated:
            return Played(result.terminated, arrays_of(rows))


def row_of(env: LiberoEnv, observation: Observation) -> dict[str, NDArray[Any]]:
    """Return what the layout stores of one moment, before its action; pictures upside down, as there."""
    state = observation.state.astype(np.float64)
    hand = env.simulation.pose()
    pictures = dict(zip(PICTURES.values(), observation.frames[:, ::-1, ::-1], strict=True))
    return {
        "states": env.simulation.flattened_state(),
        "robot_states": np.concatenate([hand.fingers, hand.position, hand.quaternion]),
        "obs/ee_states": state[:6],
        "obs/ee_pos": state[:3],
        "obs/ee_ori": state[3:6],
        "obs/gripper_states": state[6:],
        "obs/joint_states": env.simulation.arm_joints(),
        **pictures,
    }


def arrays_of(rows: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return the data sets of a demonstration from its rows."""
    ends = np.zeros(len(rows), np.uint8)
    ends[-1] = 1
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]} | {"rewards": ends, "dones": ends}
