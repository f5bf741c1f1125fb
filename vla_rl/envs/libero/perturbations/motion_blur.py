"""Blur of a moving camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations import images
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers, PictureEffect, uniform
from vla_rl.types import TaskInfo, UInt8Array

SEVERITIES = (  # of LIBERO-plus: radius and deviation in pixels
    *((5, 2.0), (8, 3.0), (10, 4.0), (12, 5.0), (15, 6.0)),
    *((18, 8.0), (20, 10.0), (25, 12.0), (30, 15.0), (35, 20.0)),
)
SETTINGS = SEVERITIES[1::2]
MAX_ANGLE_DEG = 45.0


@dataclass(frozen=True, slots=True)
class MotionBlurEffect(PictureEffect):
    """Blur of one episode."""

    radius: int
    sigma: float

    def picture(self, picture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
        """Smear in a direction drawn for this picture."""
        angle = float(rng.uniform(-MAX_ANGLE_DEG, MAX_ANGLE_DEG))
        return images.motion_blur(picture, radius=self.radius, sigma=self.sigma, angle_deg=angle)


class MotionBlur(Kind):
    """The picture is smeared in a direction that each picture draws."""

    name = "motion-blur"
    group = "image"
    summary = "the picture is smeared"
    source = "LIBERO-plus: its severities 2, 4, 6, 8, 10"

    def numbers(self, level: int) -> Numbers:
        """Return the reach and the angle."""
        radius, sigma = SETTINGS[level - 1]
        return {"radius_px": radius, "sigma_px": sigma, "angle_deg": uniform(-MAX_ANGLE_DEG, MAX_ANGLE_DEG)}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Return the same for every episode; each picture draws its angle."""
        return MotionBlurEffect(*SETTINGS[level - 1])
