"""Plan of LIBERO's environments, made from its section of a recipe."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vla_rl.envs.kind import EnvBuilder, EnvPlan
from vla_rl.envs.libero.asset_files import check_task_assets
from vla_rl.envs.libero.check import SimulatorReport, check_simulator, simulated_with
from vla_rl.envs.libero.egl_devices import variables_to_draw_on
from vla_rl.envs.libero.init_states import num_init_states
from vla_rl.envs.libero.suites import libero_task
from vla_rl.libero_suites import CAMERAS, SUITES
from vla_rl.types import TaskInfo

if TYPE_CHECKING:
    from vla_rl.envs.libero.env import Camera, LiberoEnv, Render
    from vla_rl.envs.libero.gl import GL
    from vla_rl.envs.libero.init_states import InitStates
    from vla_rl.envs.libero.perturbations.kind import Change
    from vla_rl.envs.libero.section import LiberoSection
    from vla_rl.envs.libero.simulation import Physics
    from vla_rl.envs.libero.suites import FolderTask


def plan_libero(section: LiberoSection, *, render_size: int) -> EnvPlan:
    """Check for everything that would stop an env worker, and describe the environments.

    Args:
        section: section of the recipe.
        render_size: pixels per side that the cameras render.

    Raises:
        SimulatorError: the one thing to fix first.
    """
    tasks = section.task_infos()
    simulator = check_simulator(gl=section.gl, assets=section.assets)
    for task in tasks:
        check_task_assets(simulator.assets, task)
    horizon, standard_horizon = section.episode_horizon, SUITES[section.suite].horizon
    deviations = simulator_deviations(simulator)
    if horizon != standard_horizon:
        deviations.append(f"horizon {horizon} control steps instead of {standard_horizon}")
    if section.physics != "exact":
        deviations.append(
            f"{section.physics} physics instead of LIBERO's own: one constraint solve per substep, not three"
        )
    if section.init_states != "standard":
        deviations.append(f"initial states: {section.init_states} instead of the benchmark's standard ones")
    if section.perturb is not None:
        deviations.append(f"perturbed episodes: {section.perturb}")
    builder = partial(libero_builder, section, render_size=render_size, horizon=horizon)
    return EnvPlan(
        tasks=tasks,
        builders=tuple(builder(task) for task in tasks),
        num_init_states=tuple(
            num_init_states(libero_task(section.suite, task.task_id), section.init_states) for task in tasks
        ),
        horizon=horizon,
        deviations=tuple(deviations),
        simulator=simulator,
        filming_builders=tuple(builder(task, render_all=True) for task in tasks),
        worker_variables=partial(variables_to_draw_on, gl=simulator.gl),
        identity=partial(simulated_with, section.assets),
    )


def libero_builder(
    section: LiberoSection, task: TaskInfo, *, render_size: int, horizon: int, render_all: bool = False
) -> EnvBuilder:
    """Return the builder of one LIBERO task.

    Args:
        section: section of the recipe.
        task: one of its tasks.
        render_size: pixels per side that the cameras render.
        horizon: control steps of an episode.
        render_all: for videos: draw every control step (`LiberoEnv.chunk_frames`) from all cameras, those that the
            policy sees first.
    """
    change: Change | None = None
    if section.perturb is not None:
        from vla_rl.envs.libero.perturbations.randomisation import Randomisation, training_perturbations

        change = Randomisation(tuple(training_perturbations(section.perturb.kinds)), section.perturb.share)
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
        perturbation=change,
    )


def build_libero(  # noqa: PLR0913 - one parameter per setting of a task
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
    perturbation: Change | None = None,
    own_task: FolderTask | None = None,
) -> LiberoEnv:
    """Build one LIBERO task; see `LiberoEnv` for the arguments. `render_size` is its `image_size`."""
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
        perturbation=perturbation,
        own_task=own_task,
    )


def simulator_deviations(simulator: SimulatorReport) -> list[str]:
    """Return why scores of this installation are not comparable with published ones, one sentence each."""
    deviations = list(simulator.warnings)
    if simulator.assets.kind == "proxy":
        deviations.append("built-in proxy assets instead of LIBERO's: other pictures, scores are not comparable")
    return deviations
