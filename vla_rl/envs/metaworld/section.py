"""Meta-World in a recipe."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vla_rl.envs.kind import EnvironmentSection, EnvPlan
from vla_rl.envs.metaworld.tasks import METAWORLD_TASKS, task_info
from vla_rl.section import Horizon, Problem, RulesError, Scale, TimeLimit, distinct
from vla_rl.types import StateSpace, TaskInfo


class MetaworldSection(EnvironmentSection):
    """Meta-World version 3: state observations, dense rewards, episodes that continue after a success."""

    name: Literal["metaworld"]
    tasks: list[str] = Field(["door-open-v3"], description="names of tasks, like door-open-v3")
    horizon: Annotated[int, Field(ge=1, le=500)] = Field(500, description="control steps")
    chunk_size: Horizon = Field(1, description="control steps per decision")
    reward_scale: Scale = Field(0.01, description="multiplies the dense reward of 0 to 10 per control step")

    usual_time_limit: ClassVar[TimeLimit] = "bootstrap"  # rewards continue after a success, cut by the horizon

    @model_validator(mode="after")
    def _benchmark_offers_it(self) -> Self:
        problems = distinct("tasks", self.tasks)
        bad = [task for task in self.tasks if task not in METAWORLD_TASKS]
        if bad:
            problems.append(Problem("tasks", "not tasks of Meta-World v3", str(bad), ", ".join(METAWORLD_TASKS)))
        if problems:
            raise RulesError(problems)
        return self

    @property
    def task_ids(self) -> list[int]:
        """Return the task ids, in order."""
        return [METAWORLD_TASKS.index(task) for task in self.tasks]

    @property
    def episode_horizon(self) -> int:
        """Return the control steps of an episode."""
        return self.horizon

    @property
    def reward_factor(self) -> float:
        """Return what the benchmark's own rewards are multiplied by."""
        return self.reward_scale

    @property
    def states(self) -> StateSpace:
        """Return sizes for a policy that sees only states."""
        from vla_rl.envs.metaworld.env import ACTION_DIM, STATE_DIM

        return StateSpace(STATE_DIM, ACTION_DIM, self.chunk_size)

    def task_entries(self, ids: Sequence[int]) -> list[str]:
        """Return the names of the tasks of these ids.

        Raises:
            ValueError: there is no such task.
        """
        unknown = [task for task in ids if task >= len(METAWORLD_TASKS)]
        if unknown:
            raise ValueError(f"--tasks: Meta-World has tasks 0 to {len(METAWORLD_TASKS) - 1}, found {unknown}")
        return [METAWORLD_TASKS[task] for task in ids]

    def task_infos(self) -> tuple[TaskInfo, ...]:
        """Describe the tasks, in order."""
        return tuple(task_info(task_id, name) for task_id, name in zip(self.task_ids, self.tasks, strict=True))

    def plan(self, *, render_size: int) -> EnvPlan:  # noqa: ARG002 - nothing is drawn
        """Turn the section into plain values.

        Raises:
            ValueError: the package is missing.
        """
        from vla_rl.envs.metaworld.env import NUM_GOALS, MetaworldEnv

        _check_installed()
        tasks = self.task_infos()
        builders = tuple(
            partial(
                MetaworldEnv,
                task.name,
                task_id=task.task_id,
                horizon=self.horizon,
                chunk_size=self.chunk_size,
                reward_scale=self.reward_scale,
            )
            for task in tasks
        )
        return EnvPlan(
            tasks,
            builders,
            num_init_states=(NUM_GOALS,) * len(tasks),
            horizon=self.horizon,
            identity=simulated_with,
        )


def simulated_with() -> dict[str, str]:
    """Return what of this machine decides about Meta-World's episodes, besides the program.

    Raises:
        ValueError: the package is missing.
    """
    _check_installed()
    return {package: metadata.version(package) for package in ("mujoco", "metaworld", "gymnasium")}


def _check_installed() -> None:
    if importlib.util.find_spec("metaworld") is None:
        raise ValueError(
            "env.name: metaworld was asked for, but the package metaworld is not installed. Run scripts/setup, or "
            "pip install 'vla-rl[metaworld]'"
        )
