"""Shadows, which LIBERO's scenes do not have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations.camera_orbit import PIVOT
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Model, Numbers, uniform
from vla_rl.types import TaskInfo

ELEVATIONS_DEG = (75.0, 65.0, 55.0, 45.0, 35.0)
DISTANCE_M = 4.0
SHADOW_MAP = 2048  # texels per side


@dataclass(frozen=True, slots=True)
class _Shadow(Effect):
    elevation_deg: float
    azimuth_rad: float

    def edit_model(self, scene: Model) -> None:
        elevation = math.radians(self.elevation_deg)
        towards_light = np.array(
            [
                math.cos(elevation) * math.cos(self.azimuth_rad),
                math.cos(elevation) * math.sin(self.azimuth_rad),
                math.sin(elevation),
            ]
        )
        model = scene.model
        model.light_pos[0] = PIVOT + DISTANCE_M * towards_light
        model.light_dir[0] = -towards_light
        model.light_castshadow[0] = True
        model.vis.quality.shadowsize = SHADOW_MAP


class Shadows(Kind):
    """The first light shines on the table from a drawn side and casts shadows; the lower it stands, the longer."""

    name = "shadows"
    group = "light"
    summary = "a light casts shadows, longer with every level"
    source = "ours (LIBERO-plus's values are not published)"

    def numbers(self, level: int) -> Numbers:
        """Return the place of the light."""
        return {
            "elevation_deg": ELEVATIONS_DEG[level - 1],
            "azimuth_deg": uniform(0, 360),
            "distance_m": DISTANCE_M,
            "pivot_m": PIVOT.tolist(),
        }

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw the side."""
        return _Shadow(ELEVATIONS_DEG[level - 1], float(rng.uniform(0, 2 * math.pi)))
