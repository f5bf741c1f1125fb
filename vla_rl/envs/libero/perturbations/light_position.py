"""Lights in another place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Model, Numbers, uniform
from vla_rl.types import TaskInfo


@dataclass(frozen=True, slots=True)
class _Moved(Effect):
    metres: float
    azimuth_rad: float

    def edit_model(self, scene: Model) -> None:
        scene.model.light_pos[:, 0] += self.metres * math.cos(self.azimuth_rad)
        scene.model.light_pos[:, 1] += self.metres * math.sin(self.azimuth_rad)


class LightPosition(Kind):
    """All lights move together, horizontally, in a drawn direction."""

    name = "light-position"
    group = "light"
    summary = "the lights move"
    source = "ours (LIBERO-plus's values are not published)"

    def numbers(self, level: int) -> Numbers:
        """Return the distance."""
        return {"distance_m": 0.5 * level, "azimuth_deg": uniform(0, 360)}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw the direction."""
        return _Moved(0.5 * level, float(rng.uniform(0, 2 * math.pi)))
