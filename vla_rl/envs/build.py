"""Builders of environments: picklable, and free of any simulator until they are called in the process that simulates.

A worker receives `functools.partial(build_libero, suite="libero_spatial", task_id=0, ...)` and calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_rl.envs.libero import init_states as states
from vla_rl.envs.libero.check import SimulatorReport, check_simulator
from vla_rl.envs.libero.suites import libero_task, libero_tasks
from vla_rl.envs.metaworld import MetaworldEnv
from vla_rl.envs.toy import ToyEnv

if TYPE_CHECKING:
    from vla_rl.envs.libero.env import Camera, LiberoEnv, Render
    from vla_rl.envs.libero.gl import GL
    from vla_rl.envs.libero.init_states import InitStates
    from vla_rl.envs.libero.simulation import Physics

__all__ = [
    "SimulatorReport",
    "build_libero",
    "build_metaworld",
    "build_toy",
    "check_simulator",
    "libero_tasks",
    "num_init_states",
]


def build_libero(
    *,
    suite: str,
    task_id: int,
    assets: str,
    render_size: int,
    cameras: tuple[Camera, ...],
    init_states: InitStates,
    physics: Physics = "exact",
    horizon: int | None = None,
    gl: GL = "auto",
    render: Render = "decision",
) -> LiberoEnv:
    """One LIBERO task; see `LiberoEnv` for the arguments. `render_size` is its `image_size`."""
    from vla_rl.envs.libero.env import LiberoEnv

    return LiberoEnv(
        suite,
        task_id,
        assets=assets,
        image_size=render_size,
        cameras=tuple(cameras),
        render=render,
        init_states=init_states,
        physics=physics,
        horizon=horizon,
        gl=gl,
    )


def build_toy(*, task_id: int, horizon: int = 16, chunk_size: int = 2, step_seconds: float = 0.0) -> ToyEnv:
    """One toy task; see `ToyEnv`."""
    return ToyEnv(task_id, horizon=horizon, chunk_size=chunk_size, step_seconds=step_seconds)


def build_metaworld(
    *, name: str, task_id: int, horizon: int, chunk_size: int = 1, reward_scale: float = 1.0
) -> MetaworldEnv:
    """One Meta-World task; see `MetaworldEnv`."""
    return MetaworldEnv(name, task_id=task_id, horizon=horizon, chunk_size=chunk_size, reward_scale=reward_scale)


def num_init_states(suite: str, task_id: int, init_states: InitStates) -> int | None:
    """How many initial states a task has in a set; None where any number from 0 is one (`sampled`).

    Raises:
        SimulatorError: the suite has no such task, or no such set.
    """
    return states.num_init_states(libero_task(suite, task_id), init_states)
