"""Changes with given numbers, as the names of LIBERO-plus's tasks state them: camera, pose of the arm, noise."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vla_rl.envs.libero.perturbations import fog, glass_blur, motion_blur, zoom_blur
from vla_rl.envs.libero.perturbations.camera_distance import DistanceEffect
from vla_rl.envs.libero.perturbations.camera_orbit import OrbitEffect
from vla_rl.envs.libero.perturbations.camera_tilt import TiltEffect
from vla_rl.envs.libero.perturbations.gaussian_blur import GaussianBlurEffect
from vla_rl.envs.libero.perturbations.images import zoom_factors
from vla_rl.envs.libero.perturbations.kind import Effect, Model, PictureEffect
from vla_rl.envs.libero.perturbations.robot_pose import PosedEffect, poses
from vla_rl.types import TaskInfo, UInt8Array

if TYPE_CHECKING:
    from vla_rl.envs.libero.simulation import Simulation

NUM_SEVERITIES = 10


@dataclass(frozen=True, slots=True)
class View:
    """Pose of the scene's camera, relative to the nominal one. Angles in degrees, in LIBERO-plus's order."""

    azimuth_deg: float = 0.0
    elevation_deg: float = 0.0
    distance_factor: float = 1.0
    pan_deg: float = 0.0
    tilt_deg: float = 0.0

    def apply(self, scene: Model) -> None:
        """Move the camera: around the table, away from it, then turn it in its place."""
        OrbitEffect(self.azimuth_deg, self.elevation_deg).edit_model(scene)
        DistanceEffect(self.distance_factor).edit_model(scene)
        TiltEffect(self.pan_deg, self.tilt_deg).edit_model(scene)


@dataclass(frozen=True, slots=True)
class Noise:
    """LIBERO-plus's noise of a number from 1 to 50: five kinds with ten severities each."""

    number: int

    @property
    def effect(self) -> PictureEffect:
        """Return what it does to pictures."""
        kind, severity = divmod(self.number - 1, NUM_SEVERITIES)
        match kind:
            case 0:
                return motion_blur.MotionBlurEffect(*motion_blur.SEVERITIES[severity])
            case 1:
                return GaussianBlurEffect(severity + 1.0)
            case 2:
                return zoom_blur.ZoomBlurEffect(zoom_factors(*zoom_blur.SEVERITIES[severity]))
            case 3:
                return fog.FogEffect(*fog.SEVERITIES[severity])
            case _:
                return glass_blur.GlassBlurEffect(*glass_blur.SEVERITIES[severity])


@dataclass(frozen=True, slots=True)
class _Changed(Effect):
    view: View | None
    start: PosedEffect | None
    noise: PictureEffect | None

    def edit_model(self, scene: Model) -> None:
        if self.view is not None:
            self.view.apply(scene)

    def before_settling(self, simulation: Simulation) -> None:
        if self.start is not None:
            self.start.before_settling(simulation)

    def frames(self, frames: UInt8Array, cameras: Sequence[str], rng: np.random.Generator) -> UInt8Array:
        return frames if self.noise is None else self.noise.frames(frames, cameras, rng)


@dataclass(frozen=True, slots=True)
class Variation:
    """Change of a task, the same in each of its episodes. Satisfies `kind.Change`."""

    view: View | None = None
    pose: int | None = None  # number of LIBERO-plus's pose of the arm, 1 to 500
    noise: Noise | None = None

    def effect(self, task: TaskInfo, init_state: int, *, seed: int) -> Effect:  # noqa: ARG002 - every episode's is equal
        """Return what it does to an episode."""
        start = None if self.pose is None else PosedEffect(poses().reshape(-1, 7)[self.pose - 1 : self.pose])
        return _Changed(self.view, start, None if self.noise is None else self.noise.effect)

    def generator(
        self, task: TaskInfo, init_state: int, *, seed: int, moment: tuple[int, ...] = ()
    ) -> np.random.Generator:
        """Return the generator of the draws of one `moment` of an episode: noise is drawn anew for every picture."""
        names = (zlib.crc32(name.encode()) for name in ("variation", task.suite))
        return np.random.default_rng([*names, task.task_id, init_state, seed, *moment])
