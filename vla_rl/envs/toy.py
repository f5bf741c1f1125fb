"""Toy environment, a point that must reach a goal: NumPy only, solved by a small network within seconds.

It serves to try the program out, and for tests of everything around an environment. It is also the shortest example of
a kind: the simulator, and the section of a recipe that makes it.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vla_rl.envs.kind import EnvPlan
from vla_rl.envs.numbered_tasks import NumberedTasksSection
from vla_rl.section import Horizon
from vla_rl.types import ChunkResult, FloatArray, Observation, StateSpace, TaskInfo, UInt8Array

ACTION_DIM = 2
STATE_DIM = 4
SPEED = 0.25  # displacement per control step with action 1, in half widths of the arena
GOAL_RADIUS = 0.2
SHAPING = 0.1  # reward per unit of distance gained; small compared with the 1.0 of success
_NO_FRAMES: UInt8Array = np.zeros((0, 0, 0, 3), dtype=np.uint8)


def task_info(task_id: int) -> TaskInfo:
    """Return one of the toy's tasks, without making the environment."""
    return TaskInfo(suite="toy", task_id=task_id, name=f"toy_{task_id}", language="move the point into the disc")


class ToyEnv:
    """Move a point in the square [-1, 1] x [-1, 1] into a disc around the goal.

    State, (4,): position (x, y) and goal (x, y). Action, (2,) in [-1, 1], clipped: displacement in units of `SPEED`.
    An episode terminates within `GOAL_RADIUS` of the goal with reward 1; on the way `SHAPING` times the distance
    gained is paid. Start and goal follow from (init_state, seed, task_id).

    Example:
        >>> env = ToyEnv(0)
        >>> env.reset(3).state.shape
        (4,)
    """

    def __init__(
        self,
        task_id: int = 0,
        *,
        horizon: int = 16,
        chunk_size: int = 2,
        step_seconds: float = 0.0,
    ) -> None:
        """Make the environment.

        Args:
            task_id: seeds another set of starts and goals.
            horizon: control steps after which an episode is truncated.
            chunk_size: largest number of actions `step_chunk` takes at once.
            step_seconds: simulated delay, slept in every control step.
        """
        self._task = task_info(task_id)
        self._horizon = horizon
        self._chunk_size = chunk_size
        self._step_seconds = step_seconds
        self._position: NDArray[np.float64] = np.zeros(2)
        self._goal: NDArray[np.float64] = np.zeros(2)
        self._elapsed = 0
        self._running = False

    @property
    def task(self) -> TaskInfo:
        """Return the task that is simulated."""
        return self._task

    @property
    def horizon(self) -> int:
        """Return the control steps after which an episode is truncated."""
        return self._horizon

    def reset(self, init_state: int, *, seed: int = 0) -> Observation:
        """Start an episode; same arguments, same episode.

        Args:
            init_state: any number from 0; each is another start and goal, at least half a width apart.
            seed: each seed is another set of starts and goals.
        """
        if init_state < 0 or seed < 0:
            raise ValueError(f"init_state and seed count from 0, got {init_state} and {seed}")
        generator = np.random.default_rng([seed, self._task.task_id, init_state])
        self._position, self._goal = generator.uniform(-1.0, 1.0, (2, 2))
        while self._distance() < 0.5:  # a start at the goal would be useless
            self._goal = generator.uniform(-1.0, 1.0, 2)
        self._elapsed = 0
        self._running = True
        return self._observe()

    def step_chunk(self, actions: FloatArray) -> ChunkResult:
        """Execute up to `chunk_size` actions, (K, 2), open loop; stops where the episode ends."""
        self._check(actions)
        reward = 0.0
        executed = 0
        terminated = truncated = False
        for action in actions:
            reward += self._step(action)
            executed += 1
            terminated = self._distance() < GOAL_RADIUS
            truncated = not terminated and self._elapsed >= self._horizon
            if terminated or truncated:
                self._running = False
                break
        return ChunkResult(
            observation=self._observe(),
            reward=reward + float(terminated),
            terminated=terminated,
            truncated=truncated,
            executed=executed,
        )

    def close(self) -> None:
        """Do nothing; safe to call twice."""

    def _check(self, actions: FloatArray) -> None:
        if not self._running:
            raise RuntimeError("step_chunk before reset, or after the end of an episode")
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or not 1 <= len(actions) <= self._chunk_size:
            raise ValueError(f"actions must be (1..{self._chunk_size}, {ACTION_DIM}), got {actions.shape}")

    def _step(self, action: FloatArray) -> float:
        before = self._distance()
        self._position = np.clip(self._position + SPEED * np.clip(action, -1.0, 1.0), -1.0, 1.0)
        self._elapsed += 1
        if self._step_seconds > 0.0:
            time.sleep(self._step_seconds)
        return SHAPING * (before - self._distance())

    def _distance(self) -> float:
        return float(np.linalg.norm(self._position - self._goal))

    def _observe(self) -> Observation:
        state = np.concatenate([self._position, self._goal]).astype(np.float32)
        return Observation(frames=_NO_FRAMES, state=state)


class ToySection(NumberedTasksSection):
    """A state-only reaching task that is solved in seconds: for trying the program out and for its own tests."""

    name: Literal["toy"]
    horizon: Horizon = Field(16, description="control steps")
    chunk_size: Horizon = Field(2, description="control steps per decision")
    step_seconds: Annotated[float, Field(ge=0.0, le=3600.0)] = Field(
        0.0, description="time that each control step sleeps, to imitate a slow simulator"
    )

    @property
    def episode_horizon(self) -> int:
        """Return the control steps of an episode."""
        return self.horizon

    @property
    def states(self) -> StateSpace:
        """Return sizes for a policy that sees only states."""
        return StateSpace(STATE_DIM, ACTION_DIM, self.chunk_size)

    def task_infos(self) -> tuple[TaskInfo, ...]:
        """Describe the tasks, in order."""
        return tuple(task_info(task_id) for task_id in self.tasks)

    def plan(self, *, render_size: int) -> EnvPlan:  # noqa: ARG002 - nothing is drawn
        """Turn the section into plain values."""
        builders = tuple(
            partial(
                ToyEnv,
                task_id,
                horizon=self.horizon,
                chunk_size=self.chunk_size,
                step_seconds=self.step_seconds,
            )
            for task_id in self.tasks
        )
        return EnvPlan(self.task_infos(), builders, num_init_states=(None,) * len(self.tasks), horizon=self.horizon)
