"""Meta-World v3: one Sawyer arm, state observations, dense rewards (https://arxiv.org/abs/1910.10897, 2505.11289).

`metaworld` is imported only when an environment is built. Nothing is rendered, so no graphics library is needed.
"""

from __future__ import annotations

import functools
import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.metaworld.tasks import task_info
from vla_rl.types import ChunkResult, FloatArray, Observation, TaskInfo, UInt8Array

ACTION_DIM = 4  # hand displacement (x, y, z) and gripper effort
STATE_DIM = 39  # current hand, gripper and objects (18), the same one control step ago (18), goal (3)
HORIZON = 500  # control steps; the simulator's own limit
NUM_GOALS = 50  # initial states per task, as in the benchmark's MT1

_NUMBERS_PER_STEP = 18  # of a state
_WIDEST_GRIP = 0.1  # metres

_NO_FRAMES: UInt8Array = np.zeros((0, 0, 0, 3), dtype=np.uint8)
_GOAL_SEED = 2019  # seed of all tasks' initial states, so that all runs use the same 50


class MetaworldEnv:
    """One task with the goal in the observation, as in MT1.

    State, (39,): see `STATE_DIM`, in metres and the benchmark's own order. Action, (4,) in [-1, 1], clipped. The reward
    is the benchmark's dense one, 0 to 10 per control step, times `reward_scale`. An episode never terminates: it
    continues after a success and is truncated at the horizon. `ChunkResult.success` tells whether the benchmark's
    success flag was set in a control step of the chunk.

    Example:
        >>> env = MetaworldEnv("door-open-v3", task_id=0)
        >>> env.reset(3).state.shape
        (39,)
    """

    def __init__(
        self, name: str, *, task_id: int, horizon: int = HORIZON, chunk_size: int = 1, reward_scale: float = 1.0
    ) -> None:
        """Build the simulator.

        Args:
            name: name of the task, like `door-open-v3`.
            task_id: position in the program's list of tasks.
            horizon: control steps after which an episode is truncated, at most `HORIZON`.
            chunk_size: largest number of actions `step_chunk` takes at once.
            reward_scale: multiplies the dense reward.

        Raises:
            ValueError: an unknown task, or a horizon that is too long.
        """
        if not 1 <= horizon <= HORIZON:
            raise ValueError(f"horizon must be in 1..{HORIZON}, where the simulator stops, got {horizon}")
        self._task = task_info(task_id, name)
        self._horizon = horizon
        self._chunk_size = chunk_size
        self._reward_scale = reward_scale
        self._simulator = _make_simulator(name)
        self._elapsed = horizon  # nothing to step before the first reset

    @property
    def task(self) -> TaskInfo:
        """Return the task that is simulated."""
        return self._task

    @property
    def horizon(self) -> int:
        """Return the control steps after which an episode is truncated."""
        return self._horizon

    def reset(self, init_state: int, *, seed: int = 0) -> Observation:  # noqa: ARG002
        """Start an episode; same initial state, same episode.

        Args:
            init_state: 0..49, places of the objects and of the goal.
            seed: without effect: the physics are deterministic.
        """
        if not 0 <= init_state < NUM_GOALS:
            raise ValueError(f"init_state must be in 0..{NUM_GOALS - 1}, got {init_state}")
        self._simulator.np_random = np.random.default_rng([_GOAL_SEED, init_state])
        state, _ = self._simulator.reset()
        self._elapsed = 0
        return _observation(state)

    def step_chunk(self, actions: FloatArray) -> ChunkResult:
        """Execute up to `chunk_size` actions, (K, 4), open loop; stops at the horizon."""
        self._check(actions)
        reward, success, executed = 0.0, False, 0
        for action in actions:
            state, step_reward, _, _, info = self._simulator.step(action)
            reward += float(step_reward)
            success = success or bool(info["success"])
            executed += 1
            if self._elapsed + executed == self._horizon:
                break
        self._elapsed += executed
        return ChunkResult(
            observation=_observation(state),
            reward=reward * self._reward_scale,
            terminated=False,
            truncated=self._elapsed == self._horizon,
            executed=executed,
            success=success,
        )

    def close(self) -> None:
        """Free the simulator; safe to call twice."""
        self._simulator.close()

    def _check(self, actions: FloatArray) -> None:
        if self._elapsed >= self._horizon:
            raise RuntimeError("step_chunk before reset, or after the end of an episode")
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or not 1 <= len(actions) <= self._chunk_size:
            raise ValueError(f"actions must be (1..{self._chunk_size}, {ACTION_DIM}), got {actions.shape}")


def _observation(state: NDArray[np.float64]) -> Observation:
    return Observation(frames=_NO_FRAMES, state=state.astype(np.float32))


def _make_simulator(name: str) -> Any:  # noqa: ANN401 - the package has no base class worth naming
    """Build the benchmark's environment, which draws positions from `np_random`, with an observable goal."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    from vla_rl.envs.metaworld.control_step import ControlStep, quicken_rewards

    if name not in ALL_V3_ENVIRONMENTS:
        raise ValueError(f"Meta-World has no task {name!r}; allowed are {', '.join(ALL_V3_ENVIRONMENTS)}")
    environment_class = ALL_V3_ENVIRONMENTS[name]
    _quicken(environment_class.__module__)
    quicken_rewards()
    simulator = environment_class()
    simulator._partially_observable = False
    simulator.__dict__.pop("sawyer_observation_space", None)  # cached, with a goal of zeros
    simulator._freeze_rand_vec = False
    simulator.seeded_rand_vec = True
    simulator._set_task_called = True
    simulator._get_curr_obs_combined_no_goal = functools.partial(hand_and_objects, simulator)
    simulator.step = ControlStep(simulator)
    return simulator


def hand_and_objects(simulator: Any) -> NDArray[np.float64]:  # noqa: ANN401 - see above
    """Return current hand, gripper and objects, (18,): the simulator's values, assembled in a quarter of the time."""
    grip = simulator.data.body("rightclaw").xpos - simulator.data.body("leftclaw").xpos
    positions, turns = simulator._get_pos_objects(), simulator._get_quat_objects()
    state = np.zeros(_NUMBERS_PER_STEP)
    state[:3] = simulator.get_endeff_pos()
    state[3] = min(math.sqrt(grip.dot(grip)) / _WIDEST_GRIP, 1.0)
    for index in range(len(positions) // 3):
        begin = 4 + 7 * index
        state[begin : begin + 3] = positions[3 * index : 3 * index + 3]
        state[begin + 3 : begin + 7] = turns[4 * index : 4 * index + 4]
    return state


def _quicken(module_name: str) -> None:
    """Make a task's module convert its one rotation matrix per control step to a quaternion with plain arithmetic.

    It uses scipy's `Rotation`, whose general code takes about as long as the physics. The results are equal up to
    rounding.
    """
    module = sys.modules[module_name]
    if hasattr(module, "Rotation"):
        module.Rotation = SimpleNamespace(  # type: ignore[attr-defined]
            from_matrix=lambda matrix: SimpleNamespace(as_quat=lambda: quaternion(matrix))
        )


def quaternion(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit quaternion (x, y, z, w) of an orthogonal matrix (3, 3), with scipy's sign.

    The largest of the four components is computed from the diagonal, the others from it (Markley 2008, Journal of
    Guidance, Control, and Dynamics 31, 440-442).
    """
    m = matrix.tolist()
    trace = m[0][0] + m[1][1] + m[2][2]
    candidates = [m[0][0], m[1][1], m[2][2], trace]
    i = candidates.index(max(candidates))
    if i == 3:
        q = [m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1], 1.0 + trace]
    else:
        j, k = (i + 1) % 3, (i + 2) % 3
        q = [0.0, 0.0, 0.0, m[k][j] - m[j][k]]
        q[i] = 1.0 - trace + 2.0 * m[i][i]
        q[j] = m[j][i] + m[i][j]
        q[k] = m[k][i] + m[i][k]
    norm = math.hypot(*q)
    return np.array([component / norm for component in q])
