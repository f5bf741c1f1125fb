"""One LIBERO task in MuJoCo, as the environment above needs it: reset, set a state, step, look when told to."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.libero import shim
from vla_rl.envs.libero.errors import SimulatorError
from vla_rl.types import UInt8Array

CONTROL_FREQUENCY = 20  # Hz
MAX_RESET_ATTEMPTS = 20
MAX_GEOMS = 1000  # as robosuite's own scenes
_PROPRIOCEPTION = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
_HOOK = "vla_rl_sampling_moment"


@dataclass(frozen=True, slots=True)
class Pose:
    """The robot's own state, sampled by robosuite's timers."""

    position: NDArray[np.float64]  # (3,) end effector, metres
    quaternion: NDArray[np.float64]  # (4,) x, y, z, w
    fingers: NDArray[np.float64]  # (2,) metres


class Simulation:
    """A task's robosuite environment with everything switched off that nobody reads.

    robosuite samples observations on a timer inside a control step, shortly before its end, so a frame drawn after the
    step would be another one. A sensor of our own is on the same timer: at that moment it writes down what each camera
    sees as MuJoCo's abstract scene (a list of placed geoms, 0.1 ms), and `frames` turns the scenes into pixels (50 ms)
    only if somebody asks, at any time before the next step. Frames are therefore LIBERO's own, pixel by pixel, in
    every step, also in one that turns out to have ended the episode.
    """

    def __init__(
        self,
        libraries: shim.Libraries,
        *,
        bddl: Path,
        cameras: tuple[str, ...],
        image_size: int,
        edit_xml: Callable[[str], str] | None,
    ) -> None:
        """Build the task; nothing is drawn yet.

        Args:
            libraries: of `shim.load`; the assets must be set by `shim.use_assets`.
            bddl: the task's definition.
            cameras: robosuite's names of the cameras to draw, in order.
            image_size: pixels a side.
            edit_xml: applied to the whole model's XML at every reset.
        """
        self._mujoco = libraries.mujoco
        self._retry_on = libraries.randomization_error
        self._cameras = cameras
        self._image_size = image_size
        self._camera_handles: list[Any] = []
        self._scenes: list[Any] = []
        self._frames: UInt8Array | None = None
        self._closes_at_exit = False
        self._env: Any = _build(libraries, bddl)
        if edit_xml is not None:
            self._env.set_xml_processor(edit_xml)
        self._prepare_observables(libraries.observable)
        # The constructor's own model is replaced at the first reset, so it was built without a renderer.
        self._env.has_offscreen_renderer = True

    @property
    def state_size(self) -> int:
        """Length of a flattened state: 1 + nq + nv."""
        return int(1 + self._env.sim.model.nq + self._env.sim.model.nv)

    def reset(self, seed: int) -> None:
        """Rebuild the model and place everything anew, with all that LIBERO draws at random following from `seed`.

        Raises:
            SimulatorError: no valid placement was found in `MAX_RESET_ATTEMPTS` attempts.
        """
        with shim.seeded_reset(seed), shim.egl_device():
            for _ in range(MAX_RESET_ATTEMPTS):
                # LIBERO appends to this list whenever it loads a model and draws once per entry, so that without this
                # the placement would depend on how many resets came before.
                self._env.object_property_initializers.clear()
                try:
                    self._drop_scenes()
                    self._env.reset()
                except self._retry_on:
                    continue
                self._point_cameras()
                return
        raise SimulatorError(
            f"LIBERO found no placement of the objects of {Path(self._env.bddl_file_name).name} with seed {seed} in "
            f"{MAX_RESET_ATTEMPTS} attempts; use another init_state or seed"
        )

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Put the joints where a stored state (1 + nq + nv,) says; fixtures stay where `reset` placed them."""
        if state.shape != (self.state_size,):
            raise SimulatorError(
                f"an initial state of {Path(self._env.bddl_file_name).name} must have {self.state_size} numbers "
                f"(time, positions, velocities), got shape {state.shape}"
            )
        env = self._env
        env.sim.set_state_from_flattened(state)
        env.sim.forward()
        env._check_success()  # evaluating the goal switches the stove's lamp
        env._post_process()
        env._update_observables(force=True)

    def step(self, action: NDArray[np.float64]) -> bool:
        """One control step of 50 ms; whether the goal holds afterwards."""
        _, _, success, _ = self._env.step(action)
        return bool(success)

    def solved(self) -> bool:
        """Whether the goal holds now."""
        return bool(self._env._check_success())

    def pose(self) -> Pose:
        """What robosuite's timers sampled in the last step."""
        position, quaternion, fingers = (self._env._observables[name].obs for name in _PROPRIOCEPTION)
        return Pose(position=position, quaternion=quaternion, fingers=fingers)

    def frames(self) -> UInt8Array:
        """The frames that LIBERO's cameras would have returned in the last step, (N, H, W, 3), rows from the bottom."""
        if self._frames is None:
            self._frames = self._draw()
        return self._frames

    def physics_state(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Copies of positions (nq,) and velocities (nv,)."""
        data = self._env.sim.data
        return np.array(data.qpos), np.array(data.qvel)

    @property
    def env(self) -> Any:  # noqa: ANN401 - robosuite is untyped
        """LIBERO's own environment, for tests and measurements."""
        return self._env

    def close(self) -> None:
        """Free simulator and graphics; safe to call twice."""
        if self._env is not None:
            self._drop_scenes()
            self._env.close()
            self._env = None

    def _prepare_observables(self, observable: Any) -> None:  # noqa: ANN401
        """Leave three sensors on and add the one that draws; the goal is evaluated without any of them."""
        for name in self._env.observation_names - set(_PROPRIOCEPTION):
            self._env.modify_observable(name, "enabled", False)

        def sampling_moment(_cache: dict[str, Any]) -> float:
            self._look()
            return 0.0

        sampling_moment.__modality__ = "vla_rl"  # type: ignore[attr-defined]
        self._env.add_observable(observable(_HOOK, sampling_moment, sampling_rate=CONTROL_FREQUENCY))

    def _look(self) -> None:
        """Called by robosuite at the moment at which all its sensors sample."""
        if not self._scenes:  # before a reset has made a model to look at
            return
        context = self._env.sim._render_context_offscreen
        self._frames = None
        for camera, scene in zip(self._camera_handles, self._scenes, strict=True):
            self._mujoco.mjv_updateScene(
                context.model._model,
                context.data._data,
                context.vopt,
                context.pert,
                camera,
                self._mujoco.mjtCatBit.mjCAT_ALL,
                scene,
            )

    def _draw(self) -> UInt8Array:
        context = self._env.sim._render_context_offscreen
        context.gl_ctx.make_current()
        size = self._image_size
        if size > min(context.con.offWidth, context.con.offHeight):
            context.update_offscreen_size(max(size, context.con.offWidth), max(size, context.con.offHeight))
        frames = np.empty((len(self._scenes), size, size, 3), dtype=np.uint8)
        viewport = self._mujoco.MjrRect(0, 0, size, size)
        for scene, frame in zip(self._scenes, frames, strict=True):
            self._mujoco.mjr_render(viewport, scene, context.con)
            self._mujoco.mjr_readPixels(frame, None, viewport, context.con)
        return frames

    def _drop_scenes(self) -> None:
        """Before the model goes: forget what was seen, and make its graphics the ones that are freed.

        robosuite makes a context current at its creation alone. With two simulations in a process, the end of one would
        delete the textures of the other, whose numbers are the same.
        """
        self._scenes, self._camera_handles, self._frames = [], [], None
        context = self._env.sim._render_context_offscreen
        if context is not None:
            context.gl_ctx.make_current()

    def _point_cameras(self) -> None:
        """Scenes belong to a model, and a reset has made a new one."""
        if not self._closes_at_exit:  # only now, so that it runs before the graphics library shuts down
            atexit.register(_close, weakref.ref(self))
            self._closes_at_exit = True
        model = self._env.sim.model
        self._scenes = [self._mujoco.MjvScene(model._model, maxgeom=MAX_GEOMS) for _ in self._cameras]
        self._camera_handles = []
        for name in self._cameras:
            camera = self._mujoco.MjvCamera()
            camera.type = self._mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = model.camera_name2id(name)
            self._camera_handles.append(camera)
        self._look()


def _close(reference: weakref.ref[Simulation]) -> None:
    simulation = reference()
    if simulation is not None:
        simulation.close()


def _build(libraries: shim.Libraries, bddl: Path) -> Any:  # noqa: ANN401
    """LIBERO's problem class with the arguments its own evaluation wrapper gives."""
    problem = libraries.problems[libraries.problem_info(str(bddl))["problem_name"]]
    return problem(
        str(bddl),
        robots=["Panda"],
        controller_configs=libraries.controller_config(default_controller="OSC_POSE"),
        gripper_types="default",
        initialization_noise=None,
        use_camera_obs=False,
        has_renderer=False,
        has_offscreen_renderer=False,
        control_freq=CONTROL_FREQUENCY,
        ignore_done=True,  # the horizon is counted above, where it is told apart from success
        hard_reset=True,
    )
