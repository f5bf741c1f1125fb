"""Lights of another colour."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Model, Numbers, uniform
from vla_rl.types import TaskInfo


@dataclass(frozen=True, slots=True)
class _Coloured(Effect):
    colour: tuple[float, float, float]

    def edit_model(self, scene: Model) -> None:
        headlight = scene.model.vis.headlight
        for light in (scene.model.light_diffuse, scene.model.light_ambient, headlight.diffuse, headlight.ambient):
            light[:] *= np.array(self.colour)


class LightColour(Kind):
    """All lights get a colour: of the drawn hue, of the level's saturation, and of full value."""

    name = "light-colour"
    group = "light"
    summary = "the lights have a colour"
    source = "ours (LIBERO-plus's values are not published)"

    def numbers(self, level: int) -> Numbers:
        """Return the saturation: 0 is white, 1 the pure colour."""
        return {"saturation": round(0.15 * level, 2), "hue": uniform(0, 1)}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw the hue."""
        return _Coloured(colorsys.hsv_to_rgb(float(rng.random()), round(0.15 * level, 2), 1.0))
