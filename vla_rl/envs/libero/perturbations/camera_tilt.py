"""Camera turned in its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Model, Numbers, one_of, signed
from vla_rl.envs.libero.perturbations.rotations import about, product
from vla_rl.types import TaskInfo


@dataclass(frozen=True, slots=True)
class TiltEffect(Effect):
    """Direction of one episode."""

    pan_deg: float
    tilt_deg: float

    def edit_model(self, scene: Model) -> None:
        """Turn the camera about the vertical, then about the table's width."""
        panned = product(about((0.0, 0.0, 1.0), self.pan_deg), scene.camera.quat)
        scene.camera.quat[:] = product(about((0.0, 1.0, 0.0), -self.tilt_deg), panned)


class CameraTilt(Kind):
    """The scene's camera keeps its position and looks elsewhere."""

    name = "camera-tilt"
    group = "camera"
    summary = "the camera turns in its place"
    source = "LIBERO-plus: 2 to 10 degrees about the vertical and about the table's width"

    def numbers(self, level: int) -> Numbers:
        """Return the angles."""
        return {name: one_of(-2.0 * level, 2.0 * level) for name in ("pan_deg", "tilt_deg")}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw both signs."""
        return TiltEffect(signed(rng, 2.0 * level), signed(rng, 2.0 * level))
