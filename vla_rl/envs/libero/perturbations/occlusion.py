"""Dirt on the lens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations import images
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers, PictureEffect, uniform
from vla_rl.types import TaskInfo, UInt8Array


@dataclass(frozen=True, slots=True)
class _Patch(PictureEffect):
    share: float
    place: tuple[float, float]

    def picture(self, picture: UInt8Array, rng: np.random.Generator) -> UInt8Array:  # noqa: ARG002
        return images.occlude(picture, share=self.share, place=self.place)


class Occlusion(Kind):
    """A grey square covers part of the picture, at one place for the whole episode."""

    name = "occlusion"
    group = "image"
    summary = "a grey square covers part of the picture"
    source = "ours (LIBERO-plus has none)"

    def numbers(self, level: int) -> Numbers:
        """Return the square's share of the picture's area."""
        return {
            "area_share": round(0.04 * level, 2),
            "left_to_right": uniform(0, 1),
            "first_to_last_row": uniform(0, 1),
        }

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw the place."""
        return _Patch(round(0.04 * level, 2), (float(rng.random()), float(rng.random())))
