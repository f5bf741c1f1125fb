"""Camera on an orbit around the table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Model, Numbers, one_of, signed
from vla_rl.envs.libero.perturbations.rotations import about, product, turned
from vla_rl.types import TaskInfo

PIVOT = np.array([0.0, 0.0, 0.8])  # metres; LIBERO-plus has the same one for all scenes
_UP, _SIDE = (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class OrbitEffect(Effect):
    """Orbit of one episode."""

    azimuth_deg: float
    elevation_deg: float

    def edit_model(self, scene: Model) -> None:
        """Raise the camera about the table's width, then turn it about the vertical."""
        camera = scene.camera
        raised = about(_SIDE, -self.elevation_deg)
        around = about(_UP, self.azimuth_deg)
        camera.pos[:] = turned(around, PIVOT + turned(raised, camera.pos - PIVOT))
        camera.quat[:] = product(around, product(raised, camera.quat))


class CameraOrbit(Kind):
    """The scene's camera moves around the vertical through the table's centre, and in half of the episodes up."""

    name = "camera-orbit"
    group = "camera"
    summary = "the camera moves around the table"
    source = "LIBERO-plus: azimuth up to 75 degrees, elevation 0 or 15"

    def numbers(self, level: int) -> Numbers:
        """Return the angles."""
        return {
            "azimuth_deg": one_of(-15.0 * level, 15.0 * level),
            "elevation_deg": one_of(0.0, 15.0),
            "pivot_m": PIVOT.tolist(),
        }

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw the side, and whether the camera rises."""
        return OrbitEffect(signed(rng, 15.0 * level), float(rng.choice([0.0, 15.0])))
