"""Camera at another distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations.camera_orbit import PIVOT
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Model, Numbers
from vla_rl.types import TaskInfo


@dataclass(frozen=True, slots=True)
class DistanceEffect(Effect):
    """Distance of one episode."""

    factor: float

    def edit_model(self, scene: Model) -> None:
        """Move the camera away from the pivot."""
        camera = scene.camera
        camera.pos[:] = PIVOT + self.factor * (camera.pos - PIVOT)


class CameraDistance(Kind):
    """The scene's camera moves away from a point above the table, and keeps its direction."""

    name = "camera-distance"
    group = "camera"
    summary = "the camera moves away from the table"
    source = "LIBERO-plus: factors from 1.15 to 2"

    def numbers(self, level: int) -> Numbers:
        """Return the factor of the distance."""
        return {"distance_factor": round(1 + 0.2 * level, 1), "pivot_m": PIVOT.tolist()}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Return the same for every episode."""
        return DistanceEffect(round(1 + 0.2 * level, 1))
