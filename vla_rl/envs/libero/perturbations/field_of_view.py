"""Camera with another lens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Model, Numbers, one_of, signed
from vla_rl.types import TaskInfo


@dataclass(frozen=True, slots=True)
class _FieldOfView(Effect):
    change_deg: float

    def edit_model(self, scene: Model) -> None:
        scene.camera.fovy[:] += self.change_deg


class FieldOfView(Kind):
    """The vertical field of view of the scene's camera, 45 degrees in LIBERO, becomes wider or narrower."""

    name = "field-of-view"
    group = "camera"
    summary = "the camera's field of view changes"
    source = "ours (LIBERO-plus leaves it unchanged)"

    def numbers(self, level: int) -> Numbers:
        """Return the change of the angle."""
        return {"change_deg": one_of(-4.0 * level, 4.0 * level)}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw the sign."""
        return _FieldOfView(signed(rng, 4.0 * level))
