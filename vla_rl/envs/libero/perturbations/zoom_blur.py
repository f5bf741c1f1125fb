"""Blur of a camera that moves towards the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations import images
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers, PictureEffect
from vla_rl.types import TaskInfo, UInt8Array

SEVERITIES = (  # of LIBERO-plus: limit of the enlargements, and the step between them
    *((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    *((1.36, 0.01), (1.41, 0.01), (1.46, 0.02), (1.51, 0.02), (1.56, 0.03)),
)
SETTINGS = SEVERITIES[1::2]


@dataclass(frozen=True, slots=True)
class ZoomBlurEffect(PictureEffect):
    """Blur of one episode."""

    factors: Sequence[float]

    def picture(self, picture: UInt8Array, rng: np.random.Generator) -> UInt8Array:  # noqa: ARG002
        """Take the mean of the enlarged centres."""
        return images.zoom_blur(picture, factors=self.factors)


class ZoomBlur(Kind):
    """The picture is the mean of itself and of its enlarged centres."""

    name = "zoom-blur"
    group = "image"
    summary = "the picture is smeared outwards"
    source = "LIBERO-plus: its severities 2, 4, 6, 8, 10"

    def numbers(self, level: int) -> Numbers:
        """Return the enlargements."""
        limit, step = SETTINGS[level - 1]
        return {"zoom_factors": {"from": 1.0, "below": limit, "step": step}}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Return the same for every episode."""
        return ZoomBlurEffect(images.zoom_factors(*SETTINGS[level - 1]))
