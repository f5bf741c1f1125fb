"""Gates in a row, each open to a known share of all actions: a graded toy, whose difficulty is a number.

It serves to study how a method learns where success is rare, or failure. It needs only NumPy.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vla_rl.envs.kind import EnvPlan
from vla_rl.envs.numbered_tasks import NumberedTasksSection
from vla_rl.types import ChunkResult, FloatArray, Observation, StateSpace, TaskInfo, UInt8Array

STATE_DIM = 4
_NO_FRAMES: UInt8Array = np.zeros((0, 0, 0, 3), dtype=np.uint8)


def task_info(task_id: int) -> TaskInfo:
    """Return one of the tasks, without making the environment."""
    return TaskInfo(suite="gates", task_id=task_id, name=f"gates_{task_id}", language="pass every gate")


class GatesEnv:
    """Pass all gates. Each takes one action, a direction, which must lie in the gate's opening.

    Action, (1,) in [-1, 1], clipped: the direction a, in half turns; -1 and 1 are the same. A gate lets the share
    `open` of all directions pass, centred at its own direction c. State, (4,): cos πc, sin πc, the share of the gates
    that are behind, and 1 until a gate is missed, then 0.

    Every episode has `gates` decisions. It terminates at the last one with reward 1 if all were passed; otherwise it
    is truncated there. Directions drawn uniformly succeed with probability open^gates, whatever the start is. The
    gates' directions follow from (init_state, seed, task_id).
    """

    def __init__(self, task_id: int = 0, *, gates: int = 4, open: float = 0.5) -> None:
        """Make the environment.

        Args:
            task_id: seeds another set of starts.
            gates: gates of an episode, which are its control steps.
            open: share of all directions that pass a gate.
        """
        self._task, self._gates, self._open = task_info(task_id), gates, open
        self._directions: NDArray[np.float64] = np.zeros(gates)
        self._passed = True
        self._behind = gates  # gates; all of them before the first reset

    @property
    def task(self) -> TaskInfo:
        """Return the task that is simulated."""
        return self._task

    @property
    def horizon(self) -> int:
        """Return the control steps of an episode."""
        return self._gates

    def reset(self, init_state: int, *, seed: int = 0) -> Observation:
        """Start an episode; same arguments, same gates.

        Args:
            init_state: any number from 0; each has other directions.
            seed: each seed is another set of starts.
        """
        if init_state < 0 or seed < 0:
            raise ValueError(f"init_state and seed count from 0, got {init_state} and {seed}")
        generator = np.random.default_rng([seed, self._task.task_id, init_state])
        self._directions = generator.uniform(-1.0, 1.0, self._gates)
        self._passed, self._behind = True, 0
        return self._observe()

    def step_chunk(self, actions: FloatArray) -> ChunkResult:
        """Take one action, (1, 1), at the next gate."""
        if self._behind >= self._gates:
            raise RuntimeError("step_chunk before reset, or after the end of an episode")
        if actions.shape != (1, 1):
            raise ValueError(f"actions must be (1, 1), got {actions.shape}")
        away = abs(float(np.clip(actions[0, 0], -1.0, 1.0)) - self._directions[self._behind])
        self._passed = self._passed and bool(min(away, 2.0 - away) <= self._open)
        self._behind += 1
        is_over = self._behind == self._gates
        return ChunkResult(
            observation=self._observe(),
            reward=float(is_over and self._passed),
            terminated=is_over and self._passed,
            truncated=is_over and not self._passed,
            executed=1,
        )

    def close(self) -> None:
        """Do nothing; safe to call twice."""

    def _observe(self) -> Observation:
        angle = math.pi * self._directions[min(self._behind, self._gates - 1)]
        state = [math.cos(angle), math.sin(angle), self._behind / self._gates, float(self._passed)]
        return Observation(frames=_NO_FRAMES, state=np.array(state, dtype=np.float32))


class GatesSection(NumberedTasksSection):
    """Gates in a row, a toy of known difficulty: random directions succeed with probability open^gates."""

    name: Literal["gates"]
    gates: Annotated[int, Field(ge=1, le=10_000)] = Field(4, description="gates of an episode, one decision each")
    open: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="share of all directions that pass a gate; an untrained policy draws them almost uniformly"
    )

    @property
    def episode_horizon(self) -> int:
        """Return the control steps of an episode."""
        return self.gates

    @property
    def states(self) -> StateSpace:
        """Return sizes for a policy that sees only states."""
        return StateSpace(STATE_DIM, 1, 1)

    def task_infos(self) -> tuple[TaskInfo, ...]:
        """Describe the tasks, in order."""
        return tuple(task_info(task_id) for task_id in self.tasks)

    def plan(self, *, render_size: int) -> EnvPlan:  # noqa: ARG002 - nothing is drawn
        """Turn the section into plain values."""
        return EnvPlan(
            self.task_infos(),
            tuple(partial(GatesEnv, task, gates=self.gates, open=self.open) for task in self.tasks),
            num_init_states=(None,) * len(self.tasks),
            horizon=self.gates,
        )
