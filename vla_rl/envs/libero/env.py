"""LIBERO task behind the environment protocol, rendering only the frames that a policy will see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.libero import shim
from vla_rl.envs.libero.asset_files import check_task_assets
from vla_rl.envs.libero.assets import resolve_assets
from vla_rl.envs.libero.gl import GL
from vla_rl.envs.libero.init_states import InitStates, load_states
from vla_rl.envs.libero.perturbations.kind import Change, Effect
from vla_rl.envs.libero.proxy.robot import simplify_visuals
from vla_rl.envs.libero.scene import Scene
from vla_rl.envs.libero.simulation import Physics, Pose, Simulation
from vla_rl.envs.libero.snapshot import SimulationState
from vla_rl.envs.libero.suites import FolderTask, libero_task, task_files
from vla_rl.envs.libero.widening import WIDENED
from vla_rl.envs.seeds import reset_seed
from vla_rl.errors import SimulatorError
from vla_rl.libero_suites import SUITES
from vla_rl.types import ChunkResult, FloatArray, Observation, TaskInfo, UInt8Array

ACTION_DIM = 7
STATE_DIM = 8
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
SETTLE_STEPS = 10
NUM_SEEDS = 2**32  # of NumPy's global generator, from which LIBERO draws
SETTLE_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])

Camera = Literal["agentview", "wrist"]
Render = Literal["decision", "every_step"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Moment of an episode between two chunks, to which `LiberoEnv.restore` returns."""

    simulation: SimulationState
    elapsed: int  # control steps of the episode
    running: bool


class LiberoEnv:
    """LIBERO task, stepped as in the evaluation of OpenVLA-OFT.

    Actions are the simulator's own: end-effector displacement 6 in [-1, 1] and gripper, -1 open and +1 close, at 20 Hz.
    State, (8,): end-effector position 3, axis-angle 3, finger positions 2. Frames are rotated by 180 degrees.

    Exact physics equals LIBERO's own bit for bit, and so does every frame drawn with full assets. Fast physics solves
    the contacts once per substep instead of three times: equally deterministic, but with different trajectories after
    contacts, and meant for training alone (docs/libero_physics.md has the numbers). With proxy assets the robot's
    visual meshes, three quarters of all vertices, are drawn as primitives; collision and mass are unchanged. Fixtures
    have no joints, so a stored state does not contain their poses: LIBERO draws them in every reset. Every reset here
    equals the first reset of a new `OffScreenRenderEnv` after `env.seed(seed)`.

    Example:
        >>> env = LiberoEnv("libero_spatial", 0, assets="proxy")
        >>> observation = env.reset(0)
        >>> result = env.step_chunk(np.zeros((8, 7), dtype=np.float32))
        >>> env.close()
    """

    def __init__(  # noqa: PLR0913 - one parameter per setting of a task
        self,
        suite: str,
        task_id: int,
        *,
        assets: str = "auto",
        image_size: int = 256,
        cameras: tuple[Camera, ...] = ("agentview", "wrist"),
        render: Render = "decision",
        init_states: InitStates = "standard",
        physics: Physics = "exact",
        horizon: int | None = None,
        gl: GL = "auto",
        perturbation: Change | None = None,
        own_task: FolderTask | None = None,
    ) -> None:
        """Build the simulator in this process.

        Args:
            suite: libero_spatial, libero_object, libero_goal, libero_10 or libero_90.
            task_id: position in the benchmark's own order.
            assets: auto, proxy or a folder; see `resolve_assets`.
            image_size: pixels per side of a frame.
            cameras: cameras whose frames an observation holds, in order.
            render: `decision` draws the last control step of a chunk; `every_step` draws all (`chunk_frames`).
            init_states: meaning of the number given to `reset`; see `load_states`.
            physics: `exact`, LIBERO's own, or `fast`, for training: see above.
            horizon: control steps after which an episode is truncated; default: the suite's own.
            gl: renderer; see `gl.choose`. One per process.
            perturbation: what happens to every episode; its draws follow from task, initial state and seed.
                `chunk_frames` show it too, and the frames of a decision are those that the policy sees.
            own_task: task of a user's folder, played instead of the suite's.

        Raises:
            ValueError: an argument is not among the allowed values, which the message lists.
            SimulatorError: the message names what is missing or wrong, and the fix.
        """
        for name, found, allowed in (("render", render, Render), ("physics", physics, Physics), ("gl", gl, GL)):
            _check_choice(name, found, get_args(allowed))
        for camera in cameras:
            _check_choice("cameras", camera, tuple(CAMERAS))
        for name, number in (("image_size", image_size), ("horizon", horizon)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self._task: TaskInfo = libero_task(suite, task_id) if own_task is None else own_task
        self._horizon = SUITES[suite].horizon if horizon is None else horizon
        self._render: Render = render
        self._cameras = cameras
        self._states = load_states(self._task, init_states)
        self._init_states: InitStates = init_states
        chosen = resolve_assets(assets)
        check_task_assets(chosen, self._task)
        libraries = shim.load(gl=gl)
        shim.use_assets(chosen.folder)
        self._assets = chosen
        self._simulation = Simulation(
            libraries,
            bddl=task_files(self._task).bddl,
            cameras=tuple(CAMERAS[camera] for camera in cameras),
            image_size=image_size,
            edit_xml=simplify_visuals if chosen.kind == "proxy" else None,
            physics=physics,
        )
        self._perturbation = perturbation
        self._effect = Effect()
        self._episode = (0, 0)  # initial state, seed
        self._elapsed = 0
        self._running = False
        self._closed = False
        self._chunk_frames: list[UInt8Array] = []

    @property
    def task(self) -> TaskInfo:
        """Return the task that is simulated."""
        return self._task

    @property
    def horizon(self) -> int:
        """Return the control steps after which an episode is truncated, not counting settling."""
        return self._horizon

    @property
    def chunk_frames(self) -> UInt8Array:
        """Return, with `every_step`, the frames after each control step of the last chunk, (executed, N, H, W, 3)."""
        if self._render != "every_step":
            raise RuntimeError("chunk_frames needs render='every_step'")
        return np.stack(self._chunk_frames)

    def reset(self, init_state: int, *, seed: int = 0) -> Observation:
        """Start an episode and let the objects settle for 10 control steps.

        Args:
            init_state: index into the stored states; with `sampled` and `widened`, any number from 0.
            seed: passed to LIBERO unchanged; determines everything that it draws at random, regardless of earlier
                episodes. Schedules of training and evaluation pass `vla_rl.envs.seeds.reset_seed`, so that each state
                has its own draw; so does this method for `sampled` and `widened`, whose states are nothing but draws.

        Raises:
            ValueError: `seed` is not in 0..2**32 - 1.
            RuntimeError: the environment is closed.
            SimulatorError: there is no such state, or LIBERO finds no placement.
        """
        self._check_open()
        self._check_init_state(init_state)
        if not 0 <= seed < NUM_SEEDS:
            raise ValueError(f"seed must be in 0..{NUM_SEEDS - 1}, as numpy's global generator takes it, got {seed}")
        shim.use_assets(self._assets.folder)  # a reset reads files again; another env may have set another folder
        stored = self._states is not None
        self._episode = (init_state, seed)
        if self._perturbation is not None:
            self._effect = self._perturbation.effect(self._task, init_state, seed=seed)
        self._simulation.reset(
            seed if stored else reset_seed(seed, self._task.task_id, init_state),
            widened=self._init_states == WIDENED,
            edit_model=self._effect.edit_model,
            extra_objects=self._effect.extra_objects(self._simulation.categories),
        )
        if self._states is not None:
            self._simulation.set_state(self._states[init_state])
        self._effect.before_settling(self._simulation)
        return self._settle()

    def start_from(self, state: NDArray[np.float64], *, seed: int = 0) -> Observation:
        """Start an episode from a stored state (1 + nq + nv,): time, positions, velocities, as LIBERO's files hold it.

        Fixtures are not in such a state: they are where a reset with `seed` places them. Nothing is perturbed.

        Raises:
            RuntimeError: the environment is closed.
            SimulatorError: the state has another length.
        """
        self._check_open()
        shim.use_assets(self._assets.folder)
        self._effect, self._episode = Effect(), (0, seed)
        self._simulation.reset(seed)
        self._simulation.set_state(state)
        return self._settle()

    def _settle(self) -> Observation:
        for _ in range(SETTLE_STEPS):
            self._simulation.step(SETTLE_ACTION)
        if self._effect.after_settling(self._simulation):
            self._simulation.refresh()
        self._elapsed = 0
        self._running = True
        return self._observe()

    def step_chunk(self, actions: FloatArray) -> ChunkResult:
        """Execute actions (K, 7) open loop, an array or what NumPy makes one of; stops where the episode ends.

        The observation is that of the last executed control step, also if success ends a chunk early. Reward is 1 in
        the step in which the goal first holds, else 0.

        Raises:
            ValueError: the actions have another shape, or are not finite; nothing was executed.
            RuntimeError: no episode is running.
        """
        if not self._running:
            raise RuntimeError("step_chunk before reset, or after the end of an episode")
        commands = np.array(actions, dtype=np.float64)
        if commands.ndim != 2 or commands.shape[1] != ACTION_DIM or len(commands) == 0:
            raise ValueError(f"actions must be (K, {ACTION_DIM}) with K >= 1, got {commands.shape}")
        if not np.isfinite(commands).all():  # MuJoCo would restart its simulation in the middle of the episode
            raise ValueError(f"actions must be finite, got {commands[~np.isfinite(commands).all(axis=1)][0]}")
        planned = min(len(commands), self._horizon - self._elapsed)
        self._chunk_frames = []
        terminated = False
        executed = 0
        for action in commands[:planned]:
            executed += 1
            terminated = self._simulation.step(self._perturbed(action, self._elapsed + executed))
            if self._render == "every_step":
                self._chunk_frames.append(_upright(self._filmed(self._elapsed + executed)))
            if terminated:
                break
        self._elapsed += executed
        truncated = not terminated and self._elapsed >= self._horizon
        self._running = not (terminated or truncated)
        return ChunkResult(
            observation=self._observe(),
            reward=float(terminated),
            terminated=terminated,
            truncated=truncated,
            executed=executed,
        )

    def physics_state(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return copies of MuJoCo's positions (nq,) and velocities (nv,).

        Raises:
            RuntimeError: the environment is closed.
        """
        self._check_open()
        return self._simulation.physics_state()

    @property
    def scene(self) -> Scene:
        """Return what policies do not see: poses of objects and sites, the goal, and the heights of surfaces."""
        return self._simulation.scene

    def snapshot(self) -> Snapshot:
        """Return an exact copy of this moment of the episode: physics, controller, gripper, timers and frames.

        Raises:
            RuntimeError: the episode is perturbed: delayed actions and the like are not in a snapshot.
        """
        if self._perturbation is not None:
            raise RuntimeError("a perturbed episode has no snapshots")
        return Snapshot(self._simulation.snapshot(), self._elapsed, self._running)

    def restore(self, snapshot: Snapshot) -> Observation:
        """Return to a moment of the running episode, and return its observation.

        Chunks that are stepped from there repeat those that were stepped before to the last bit. A snapshot can be
        restored any number of times, until the next reset.

        Raises:
            RuntimeError: the environment was reset after the snapshot was taken.
        """
        self._simulation.restore(snapshot.simulation)
        self._elapsed, self._running = snapshot.elapsed, snapshot.running
        self._chunk_frames = []
        return self._observe()

    @property
    def simulation(self) -> Simulation:
        """Return the underlying simulation, for tests and measurements."""
        return self._simulation

    def close(self) -> None:
        """Free simulator and graphics; safe to call twice."""
        self._running = False
        self._simulation.close()
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the environment is closed; build another LiberoEnv")

    def _check_init_state(self, init_state: int) -> None:
        if init_state < 0 or (self._states is not None and init_state >= len(self._states)):
            allowed = "any number from 0" if self._states is None else f"0..{len(self._states) - 1}"
            raise SimulatorError(
                f"init_state {init_state} does not exist: the {self._init_states} states of {self._task.suite} task "
                f"{self._task.task_id} are {allowed}"
            )

    def _perturbed(self, action: NDArray[np.float64], step: int) -> NDArray[np.float64]:
        return action if self._perturbation is None else self._effect.action(action, self._draws(0, step))

    def _draws(self, use: int, step: int) -> np.random.Generator:
        """Return the generator of an episode for one use in one control step: the same for every policy."""
        assert self._perturbation is not None
        init_state, seed = self._episode
        return self._perturbation.generator(self._task, init_state, seed=seed, moment=(use, step))

    def _filmed(self, step: int) -> UInt8Array:
        frames = self._simulation.frames()
        if self._perturbation is None:
            return frames
        return self._effect.filmed(frames, self._cameras, self._draws(1, step))

    def _observe(self) -> Observation:
        frames = self._simulation.frames()
        if self._perturbation is not None:
            frames = self._effect.frames(frames, self._cameras, self._draws(1, self._elapsed))
        return Observation(
            frames=_upright(frames),
            state=proprioception(self._simulation.pose()),
        )


def _check_choice(name: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        raise ValueError(f"{name}: {found!r} does not exist; choose from {', '.join(allowed)}")


def proprioception(pose: Pose) -> FloatArray:
    """Return the 8 numbers that published policies were trained on: position 3, axis-angle 3, fingers 2."""
    return np.concatenate([pose.position, axis_angle(pose.quaternion), pose.fingers]).astype(np.float32)


def axis_angle(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation (x, y, z, w) as axis times angle, with angles up to 2 pi.

    The quaternion is deliberately not flipped to the equivalent one with the smaller angle: the policies' statistics
    were computed without this, and flipping costs up to 40 points of success.
    """
    w = min(1.0, max(-1.0, float(quaternion[3])))
    sine = np.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return np.asarray(quaternion[:3] * 2.0 * np.arccos(w) / sine)


def _upright(frames: UInt8Array) -> UInt8Array:
    """Rotate OpenGL's frames, rows from the bottom, by 180 degrees as in the training data."""
    return np.ascontiguousarray(frames[:, ::-1, ::-1])
