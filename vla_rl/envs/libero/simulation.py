"""LIBERO task in MuJoCo, as the environment above needs it: reset, set a state, step, render on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.libero import shim, widening
from vla_rl.envs.libero.arm import Arm
from vla_rl.envs.libero.cameras import Cameras
from vla_rl.envs.libero.perturbations.kind import Model
from vla_rl.envs.libero.scene import Scene
from vla_rl.envs.libero.snapshot import SimulationState, derived_arrays, put_back, take
from vla_rl.errors import SimulatorError
from vla_rl.types import UInt8Array

CONTROL_FREQUENCY = 20  # Hz
CONTROLLER = "OSC_POSE"
ARGUMENTS: Mapping[str, Any] = {  # of LIBERO's problem classes, besides the task, the controller and the renderer
    "robots": ["Panda"],
    "gripper_types": "default",
    "initialization_noise": None,
    "control_freq": CONTROL_FREQUENCY,
    "ignore_done": True,  # `LiberoEnv` counts the horizon, separately from success
    "hard_reset": True,
}
MAX_RESET_ATTEMPTS = 20
_PROPRIOCEPTION = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
_HOOK = "vla_rl_sampling_moment"
_EXTRA = "vla_rl_distractor"

Physics = Literal["exact", "fast"]


@dataclass(frozen=True, slots=True)
class Pose:
    """State of the robot, sampled by robosuite's timers."""

    position: NDArray[np.float64]  # (3,) end effector, metres
    quaternion: NDArray[np.float64]  # (4,) x, y, z, w
    fingers: NDArray[np.float64]  # (2,) metres


class Simulation:
    """Task's robosuite environment without work whose results nobody reads. States and frames equal LIBERO's own.

    robosuite samples observations on timers inside a control step, shortly before its end, so a frame drawn after the
    step would differ. All timers run alike; here our own sensor has the only one, and at that moment the pose is read
    and the cameras capture their scenes. `frames` draws them only on request, at any time before the next step, also if
    the step ended the episode.
    """

    def __init__(
        self,
        libraries: shim.Libraries,
        *,
        bddl: Path,
        cameras: tuple[str, ...],
        image_size: int,
        edit_xml: Callable[[str], str] | None,
        physics: Physics = "exact",
    ) -> None:
        """Build the task; nothing is drawn yet.

        Args:
            libraries: result of `shim.load`; the assets must be set by `shim.use_assets`.
            bddl: the task's definition.
            cameras: robosuite's names of the cameras to draw, in order.
            image_size: pixels per side.
            edit_xml: applied to the whole model's XML at every reset.
            physics: `exact`, LIBERO's own bit for bit, or `fast`; see `_forward`.
        """
        self._mujoco = libraries.mujoco
        self._drive = libraries.drive
        self._retry_on = libraries.randomization_error
        self._bddl = bddl
        self._env: Any = _build(libraries, bddl)
        self._ranges: widening.Ranges = {
            name: region["ranges"] for name, region in self._env.parsed_problem["regions"].items()
        }
        self._num_initializers = len(self._env.object_property_initializers)
        self._cameras = Cameras(libraries, names=cameras, image_size=image_size)
        if edit_xml is not None:
            self._env.set_xml_processor(edit_xml)
        self._physics: Physics = physics
        self._arm: Arm | None = None
        self._model: Any = None  # MuJoCo's objects of the last reset
        self._data: Any = None
        self._views: dict[str, NDArray[Any]] = {}  # of its arrays
        self._scene: Scene | None = None
        self._resets = 0
        self._pose: Pose
        self._make_object = libraries.object_class
        self._extra: dict[str, str] = {}  # category by name of the objects added to the task's own
        self._prepare_observables(libraries.observable)
        self._take_over()
        # Work is skipped depending on the point at which robosuite calls us; outside a step nothing is skipped. In a
        # step a substep begins unplaced, the first `_forward` places it, and `_step` begins the next one.
        self._stepping = False
        self._placed = False  # whether positions and velocities have been propagated in this substep

    @property
    def env(self) -> Any:  # noqa: ANN401 - robosuite is untyped
        """Return LIBERO's own environment, for tests and measurements."""
        return self._env

    @property
    def mujoco(self) -> Any:  # noqa: ANN401
        """Return the `mujoco` module."""
        return self._mujoco

    @property
    def model(self) -> Any:  # noqa: ANN401
        """Return MuJoCo's model of the last reset."""
        return self._model

    @property
    def data(self) -> Any:  # noqa: ANN401
        """Return MuJoCo's data of the last reset."""
        return self._data

    @property
    def categories(self) -> frozenset[str]:
        """Return the categories of the task's own objects and fixtures."""
        own = (*self._env.objects_dict.values(), *self._env.fixtures_dict.values())
        return frozenset(getattr(one, "category_name", "") for one in own)

    @property
    def extra_objects(self) -> dict[str, str]:
        """Return the objects that the last reset added to the task's own: category by name."""
        return dict(self._extra)

    @property
    def state_size(self) -> int:
        """Return the length of a flattened state without added objects: 1 + nq + nv."""
        return int(1 + self._env.sim.model.nq + self._env.sim.model.nv - 13 * len(self._extra))

    def reset(
        self,
        seed: int,
        *,
        widened: bool = False,
        edit_model: Callable[[Model], None] | None = None,
        extra_objects: Sequence[str] = (),
    ) -> None:
        """Rebuild the model and place everything again; everything that LIBERO draws at random follows from `seed`.

        Args:
            seed: number for NumPy's global generator.
            widened: move the regions from which LIBERO draws first; see `widening`.
            edit_model: changes what is drawn, in the new model.
            extra_objects: categories of objects to add; they lie at the origin until somebody moves them. The task's
                own objects and fixtures are placed as without them.

        Raises:
            SimulatorError: no valid placement was found in `MAX_RESET_ATTEMPTS` attempts.
        """
        problem, generator = self._env.parsed_problem, widening.generator_of(seed)
        for _ in range(MAX_RESET_ATTEMPTS if widened else 1):
            if widened:
                ranges = widening.moved(self._ranges, widening.shifts(problem, generator))
                for name, rectangles in ranges.items():
                    problem["regions"][name]["ranges"] = rectangles
            self._reset(seed, edit_model, extra_objects)
            if not widened or not self._overlaps():
                return
        raise SimulatorError(
            f"no widened placement of the objects of {self._bddl.name} with seed {seed} in {MAX_RESET_ATTEMPTS} "
            "attempts; use another init_state or seed"
        )

    def _overlaps(self) -> bool:
        """Return whether a fixture stands in a movable object; how objects stand to each other is LIBERO's own draw."""
        roots = self._model.body_rootid[self._model.geom_bodyid]
        objects, fixtures = (
            {int(self._model.body_rootid[self._env.obj_body_id[name]]) for name in names}
            for names in (self._env.objects_dict, self._env.fixtures_dict)
        )
        contacts = self._data.contact
        return any(
            distance < -widening.OVERLAP and bool(objects & pair) and bool(fixtures & pair)
            for distance, pair in zip(contacts.dist, (set(roots[it].tolist()) for it in contacts.geom), strict=True)
        )

    def _reset(self, seed: int, edit_model: Callable[[Model], None] | None, extra_objects: Sequence[str]) -> None:
        # LIBERO appends to this list whenever it loads a model, and draws once per entry. Every reset here starts with
        # it as the first reset of a new env does; the attempts of one reset add to it, as LIBERO's do.
        del self._env.object_property_initializers[self._num_initializers :]
        if tuple(extra_objects) != tuple(self._extra.values()):
            self._cameras.forget_assets()
        self._extra = {f"{_EXTRA}_{number}": category for number, category in enumerate(extra_objects)}
        with shim.seeded_reset(seed):
            for _ in range(MAX_RESET_ATTEMPTS):
                try:
                    self._env.reset()
                except self._retry_on:
                    continue
                self._arm = Arm(
                    self._mujoco,
                    self._env,
                    drive=self._drive,
                    exact=self._physics == "exact",
                    propagate=self._forward,
                )
                drawn = Model(mujoco=self._mujoco, model=self._env.sim.model._model, repainted=set())
                if edit_model is not None:
                    edit_model(drawn)
                self._cameras.point_at(drawn.model, self._env.sim.data._data, repainted=drawn.repainted)
                self._views = derived_arrays(self._data)
                self._scene = Scene(self._mujoco, self._env)
                self._resets += 1
                return
        raise SimulatorError(
            f"LIBERO found no placement of the objects of {self._bddl.name} with seed {seed} in "
            f"{MAX_RESET_ATTEMPTS} attempts; use another init_state or seed"
        )

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Set the joints to a stored state (1 + nq + nv,); fixtures stay where `reset` placed them."""
        if state.shape != (self.state_size,):
            raise SimulatorError(
                f"an initial state of {self._bddl.name} must have {self.state_size} numbers "
                f"(time, positions, velocities), got shape {state.shape}"
            )
        env = self._env
        if self._extra:  # their joints are the last ones
            positions, velocities = np.split(state[1:], [env.sim.model.nq - 7 * len(self._extra)])
            added = self._data.qpos[len(positions) :]
            state = np.concatenate([state[:1], positions, added, velocities, np.zeros(6 * len(self._extra))])
        env.sim.set_state_from_flattened(state)
        env.sim.forward()
        env._check_success()  # evaluating the goal switches the stove's lamp
        env._post_process()
        env._update_observables(force=True)

    def set_arm(self, joints: NDArray[np.float64]) -> None:
        """Put the arm's joints, (7,) radians, at rest in a pose, from which its controller starts."""
        robot = self._env.robots[0]
        self._data.qpos[robot._ref_joint_pos_indexes] = joints
        self._data.qvel[robot._ref_joint_vel_indexes] = 0.0
        robot.controller.update_initial_joints(joints)

    def robot_touches(self) -> bool:
        """Return whether the robot touches anything but itself."""
        roots, geoms = self._model.body_rootid, self._model.geom_bodyid
        robot = roots[self._model.body(self._env.robots[0].robot_model.root_body).id]
        pairs = [roots[geoms[self._data.contact[number].geom]] == robot for number in range(self._data.ncon)]
        return any(pair.any() and not pair.all() for pair in pairs)

    def refresh(self) -> None:
        """Take new samples of pose and scene, after positions were changed between two steps."""
        self._env.sim.forward()
        self._env._check_success()  # evaluating the goal switches the stove's lamp
        self._sample(self._env._obs_cache)  # not by the timer, which this would shift

    def step(self, action: NDArray[np.float64]) -> bool:
        """Execute one control step of 50 ms. Return whether the goal holds afterwards."""
        self._stepping, self._placed = True, False
        try:
            _, _, success, _ = self._env.step(action)
        finally:
            self._stepping = False
        return bool(success)

    def solved(self) -> bool:
        """Return whether the goal holds now."""
        return bool(self._env._check_success())

    def pose(self) -> Pose:
        """Return the pose that robosuite's timers would have sampled in the last step."""
        return self._pose

    def frames(self) -> UInt8Array:
        """Return the frames that LIBERO's cameras would have returned in the last step."""
        return self._cameras.frames()

    def physics_state(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return copies of positions (nq,) and velocities (nv,)."""
        data = self._env.sim.data
        return np.array(data.qpos), np.array(data.qvel)

    def flattened_state(self) -> NDArray[np.float64]:
        """Return the state as LIBERO's files store it, (1 + nq + nv,): time, positions, velocities."""
        data = self._env.sim.data
        return np.concatenate([[data.time], data.qpos, data.qvel])

    def arm_joints(self) -> NDArray[np.float64]:
        """Return the arm's joint positions, (7,), in radians."""
        return np.array(self._env.sim.data.qpos[self._env.robots[0]._ref_joint_pos_indexes])

    def robot_base(self) -> NDArray[np.float64]:
        """Return where the robot's base is, (3,) metres."""
        return np.array(self._env.sim.data.get_body_xpos(self._env.robots[0].robot_model.root_body))

    @property
    def scene(self) -> Scene:
        """Return poses, goal and surfaces of the episode that is running.

        Raises:
            RuntimeError: there was no reset yet.
        """
        if self._scene is None:
            raise RuntimeError("there is no scene before the first reset")
        return self._scene

    def snapshot(self) -> SimulationState:
        """Return an exact copy of the state between two control steps; draws the frames if nobody did."""
        return take(
            self._mujoco,
            self._env,
            views=self._views,
            timer=self._sampling,
            reset_number=self._resets,
            pose=self._pose,
            frames=self.frames(),
        )

    def restore(self, state: SimulationState) -> None:
        """Return to a state: everything that follows repeats itself to the last bit.

        Raises:
            RuntimeError: the state was taken before the last reset, which made another model.
        """
        if state.reset_number != self._resets:
            raise RuntimeError("this snapshot was taken before the last reset, and cannot be restored after it")
        put_back(self._mujoco, self._env, state, views=self._views, timer=self._sampling)
        self._pose = state.pose
        self._cameras.show(state.frames)

    def close(self) -> None:
        """Free simulator and graphics; safe to call twice."""
        self._cameras.close()
        if self._env is not None:
            self._env.close()
            self._env = None

    def _prepare_observables(self, observable: Any) -> None:  # noqa: ANN401
        """Turn off all of robosuite's observables and add our sensor; the goal is evaluated without any of them."""
        for name in self._env.observation_names:
            self._env.modify_observable(name, "enabled", False)

        def sampling_moment(cache: dict[str, Any]) -> float:
            self._cameras.look()
            # Looked up each time, because a reset recreates the sensors.
            self._pose = Pose(*(self._env._observables[name]._sensor(cache) for name in _PROPRIOCEPTION))
            return 0.0

        self._sample = sampling_moment
        sampling_moment.__modality__ = "vla_rl"  # type: ignore[attr-defined]
        self._env.add_observable(observable(_HOOK, sampling_moment, sampling_rate=CONTROL_FREQUENCY))
        self._sampling = self._env._observables[_HOOK]

    def _take_over(self) -> None:
        """Replace the methods that robosuite 1.4.0 calls in a reset and in every substep by our own."""
        self._load_own = self._env._load_model
        self._env._load_model = self._load_model
        self._make_model = self._env._initialize_sim
        self._env._initialize_sim = self._initialize_sim
        self._env._destroy_sim = self._destroy_sim
        self._env._pre_action = self._pre_action
        self._env._update_observables = self._update_observables
        self._env._get_observations = self._get_observations
        self._env.reward = lambda _action: 0.0  # it evaluates the goal, as does `step` right after it

    def _update_observables(self, force: bool = False) -> None:
        """Update the enabled sensor only; called in every substep."""
        self._sampling.update(timestep=self._env.model_timestep, obs_cache=self._env._obs_cache, force=force)

    def _get_observations(self, force_update: bool = False) -> dict[str, Any]:
        """Take new samples if asked, and assemble nothing; called at the end of a step and of a reset."""
        if force_update:
            self._update_observables(force=True)
        return {}

    def _pre_action(self, action: NDArray[np.float64], policy_step: bool = False) -> None:
        """Set the controls; called in every substep, before the step."""
        assert self._arm is not None, "step before reset"
        if policy_step:
            self._arm.begin(action)
        else:
            self._arm.proceed()

    def _load_model(self) -> None:
        """Assemble the task's model as LIBERO does, then add the extra objects behind everything else."""
        self._load_own()
        if self._extra:
            made = [self._make_object(category)(name=name, obj_name=category) for name, category in self._extra.items()]
            self._env.model.merge_objects(made)

    def _initialize_sim(self) -> None:
        """Do what robosuite does in a reset, then install our shortcuts on the new simulation."""
        self._make_model()
        sim = self._env.sim
        sim.forward()  # as robosuite does when it makes a renderer; it changes the solver's warm start
        sim.forward, sim.step = self._forward, self._step
        self._model, self._data = sim.model._model, sim.data._data
        if self._physics == "fast":  # sensors of force and torque in the wrist, which nobody reads
            self._model.opt.disableflags |= int(self._mujoco.mjtDisableBit.mjDSBL_SENSOR)

    def _destroy_sim(self) -> None:
        """Drop the references, which frees the model at once, without robosuite's full garbage collection."""
        self._cameras.let_go()
        self._arm = self._model = self._data = self._scene = None
        self._views = {}
        sim = self._env.sim
        if sim is not None:
            del sim.data, sim.model
        self._env.sim = None

    def _forward(self) -> None:
        """Run `sim.forward`, skipping what cannot have changed.

        In every substep robosuite propagates three times: before the controller, in the controller, and in the step.
        Positions and velocities are the same in all three; the constraint solver is not, because it starts from its own
        last solution. So with exact physics only the solver runs the second and third time, and the result is equal to
        the last bit. Fast physics solves once, in the step, as MuJoCo's documentation recommends for a controller that
        needs positions and velocities (`mj_step1`, controller, `mj_step2`). The solver then starts from the last
        substep.
        """
        model, data = self._model, self._data
        if not self._stepping:
            self._mujoco.mj_forward(model, data)
        elif self._physics == "fast":
            if not self._placed:
                self._mujoco.mj_step1(model, data)
        elif self._placed:
            self._mujoco.mj_forwardSkip(model, data, self._mujoco.mjtStage.mjSTAGE_VEL, 0)
        else:
            self._mujoco.mj_forward(model, data)
        self._placed = True

    def _step(self) -> None:
        step = self._mujoco.mj_step2 if self._placed and self._stepping else self._mujoco.mj_step
        step(self._model, self._data)
        self._placed = False


def _build(libraries: shim.Libraries, bddl: Path) -> Any:  # noqa: ANN401
    """Build LIBERO's problem class with the arguments of its own evaluation wrapper, but no renderer."""
    problem = libraries.problems[libraries.problem_info(str(bddl))["problem_name"]]
    return problem(
        str(bddl),
        controller_configs=libraries.controller_config(default_controller=CONTROLLER),
        use_camera_obs=False,
        has_renderer=False,
        has_offscreen_renderer=False,
        **ARGUMENTS,
    )
