"""Brighter or darker lights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Model, Numbers, one_of
from vla_rl.types import TaskInfo

DARKER = (0.8, 0.6, 0.4, 0.3, 0.2)
BRIGHTER = (1.2, 1.4, 1.6, 1.8, 2.0)


@dataclass(frozen=True, slots=True)
class _Scaled(Effect):
    factor: float

    def edit_model(self, scene: Model) -> None:
        model, headlight = scene.model, scene.model.vis.headlight
        for light in (model.light_diffuse, model.light_ambient, model.light_specular):
            light *= self.factor
        for light in (headlight.diffuse, headlight.ambient, headlight.specular):
            light[:] *= self.factor


class LightStrength(Kind):
    """All lights, the camera's own included, become darker or brighter."""

    name = "light-strength"
    group = "light"
    summary = "the lights become darker or brighter"
    source = "ours; 0.2 is LIBERO-Pro's glare case, 0.4 to 2 are LIBERO-Infinity's"

    def numbers(self, level: int) -> Numbers:
        """Return the factors of ambient, diffuse and specular light."""
        return {"strength_factor": one_of(DARKER[level - 1], BRIGHTER[level - 1])}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw one of the two."""
        return _Scaled(float(rng.choice([DARKER[level - 1], BRIGHTER[level - 1]])))
