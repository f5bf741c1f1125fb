"""The environments of a run, one function per kind: what a section of the recipe becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vla_rl.envs import metaworld, toy
from vla_rl.envs.build import (
    SimulatorReport,
    build_libero,
    build_metaworld,
    build_toy,
    check_simulator,
    libero_tasks,
    num_init_states,
)
from vla_rl.envs.libero.asset_files import check_task_assets
from vla_rl.libero_suites import SUITES
from vla_rl.recipe import EnvSection, LiberoSection, MetaworldSection, ToySection
from vla_rl.types import Environment, TaskInfo

if TYPE_CHECKING:
    from vla_rl.envs.libero.env import Camera

CAMERAS: tuple[Camera, ...] = ("agentview", "wrist")  # all that LIBERO's policies were trained with
EnvBuilder = Callable[[], Environment]


@dataclass(frozen=True, slots=True)
class EnvPlan:
    """The environments of a run or an evaluation, one entry per task in every sequence."""

    tasks: tuple[TaskInfo, ...]
    builders: tuple[EnvBuilder, ...]
    num_init_states: tuple[int | None, ...]
    horizon: int  # control steps of the longest episode
    deviations: tuple[str, ...]  # from the benchmark's protocol, in words
    simulator: SimulatorReport | None


def plan_env(section: EnvSection, *, render_size: int) -> EnvPlan:
    """Turn the recipe's environment into plain values; `render_size` is what its cameras draw, if it has any.

    Raises:
        ValueError: it cannot be simulated here.
    """
    if isinstance(section, ToySection):
        return _plan_toy(section)
    if isinstance(section, MetaworldSection):
        return _plan_metaworld(section)
    return _plan_libero(section, render_size=render_size)


def state_shapes(section: ToySection | MetaworldSection) -> tuple[int, int]:
    """Numbers of a state and of an action, for a policy that sees states alone."""
    module = toy if isinstance(section, ToySection) else metaworld
    return module.STATE_DIM, module.ACTION_DIM


def libero_tasks_of(section: LiberoSection) -> tuple[TaskInfo, ...]:
    """The tasks of a LIBERO section, in order; asks for no simulator."""
    known = libero_tasks(section.suite)
    return tuple(known[task_id] for task_id in section.task_ids)


def _plan_toy(section: ToySection) -> EnvPlan:
    tasks = tuple(toy.task_info(task_id) for task_id in section.tasks)
    builders = tuple(
        partial(
            build_toy,
            task_id=task.task_id,
            horizon=section.horizon,
            chunk_size=section.chunk_size,
            step_seconds=section.step_seconds,
        )
        for task in tasks
    )
    return EnvPlan(
        tasks=tasks,
        builders=builders,
        num_init_states=(None,) * len(tasks),
        horizon=section.horizon,
        deviations=(),
        simulator=None,
    )


def _plan_metaworld(section: MetaworldSection) -> EnvPlan:
    metaworld.check_installed()
    named = zip(section.task_ids, section.tasks, strict=True)
    tasks = tuple(metaworld.task_info(task_id, name) for task_id, name in named)
    builders = tuple(
        partial(
            build_metaworld,
            name=task.name,
            task_id=task.task_id,
            horizon=section.horizon,
            chunk_size=section.chunk_size,
            reward_scale=section.reward_scale,
        )
        for task in tasks
    )
    return EnvPlan(
        tasks=tasks,
        builders=builders,
        num_init_states=(metaworld.NUM_GOALS,) * len(tasks),
        horizon=section.horizon,
        deviations=(),
        simulator=None,
    )


def _plan_libero(section: LiberoSection, *, render_size: int) -> EnvPlan:
    tasks = libero_tasks_of(section)
    simulator = check_simulator(gl=section.gl, assets=section.assets)
    for task in tasks:
        check_task_assets(simulator.assets, task)
    horizon, standard_horizon = section.episode_horizon, SUITES[section.suite].horizon
    builders = tuple(libero_builder(section, task, render_size=render_size, horizon=horizon) for task in tasks)
    deviations = simulator_deviations(simulator)
    if horizon != standard_horizon:
        deviations.append(f"horizon {horizon} control steps instead of {standard_horizon}")
    if section.physics != "exact":
        deviations.append(
            f"{section.physics} physics instead of LIBERO's own: one constraint solve per substep, not three"
        )
    if section.init_states != "standard":
        deviations.append(f"initial states: {section.init_states} instead of the benchmark's standard ones")
    return EnvPlan(
        tasks=tasks,
        builders=builders,
        num_init_states=tuple(num_init_states(section.suite, task.task_id, section.init_states) for task in tasks),
        horizon=horizon,
        deviations=tuple(deviations),
        simulator=simulator,
    )


def libero_builder(
    section: LiberoSection, task: TaskInfo, *, render_size: int, horizon: int, render_all: bool = False
) -> EnvBuilder:
    """Builds one LIBERO task.

    Args:
        section: of the recipe.
        task: one of its tasks.
        render_size: pixels a side that the cameras draw.
        horizon: control steps of an episode.
        render_all: for videos: draw every control step (`LiberoEnv.chunk_frames`) from all cameras, those that the
            policy sees first.
    """
    seen = tuple(section.cameras)
    unseen: tuple[Camera, ...] = tuple(camera for camera in CAMERAS if camera not in seen)
    return partial(
        build_libero,
        suite=section.suite,
        task_id=task.task_id,
        assets=section.assets,
        render_size=render_size,
        cameras=seen + unseen if render_all else seen,
        init_states=section.init_states,
        physics=section.physics,
        horizon=horizon,
        gl=section.gl,
        render="every_step" if render_all else "decision",
    )


def simulator_deviations(simulator: SimulatorReport) -> list[str]:
    """Why scores of this installation are not comparable with published ones, one sentence each."""
    deviations = list(simulator.warnings)
    if simulator.assets.kind == "proxy":
        deviations.append("built-in proxy assets instead of LIBERO's: other pictures, scores are not comparable")
    return deviations
