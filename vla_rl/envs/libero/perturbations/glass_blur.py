"""Blur of frosted glass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations import images
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers, PictureEffect
from vla_rl.types import TaskInfo, UInt8Array

SEVERITIES = (  # of LIBERO-plus: deviation and largest shift in pixels, passes
    *((0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2)),
    *((1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1), (2.5, 5, 1)),
)
SETTINGS = SEVERITIES[1::2]


@dataclass(frozen=True, slots=True)
class GlassBlurEffect(PictureEffect):
    """Blur of one episode."""

    sigma: float
    max_shift: int
    passes: int

    def picture(self, picture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
        """Exchange the pixels of this picture anew."""
        return images.glass_blur(picture, sigma=self.sigma, max_shift=self.max_shift, passes=self.passes, rng=rng)


class GlassBlur(Kind):
    """The picture is seen through frosted glass: near pixels are exchanged between two blurs."""

    name = "glass-blur"
    group = "image"
    summary = "the picture is seen through frosted glass"
    source = "LIBERO-plus: its severities 2, 4, 6, 8, 10"

    def numbers(self, level: int) -> Numbers:
        """Return the blur, and how far and how often pixels move."""
        sigma, max_shift, passes = SETTINGS[level - 1]
        return {"sigma_px": sigma, "max_shift_px": max_shift, "passes": passes}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Return the same for every episode; each picture draws its exchanges."""
        return GlassBlurEffect(*SETTINGS[level - 1])
