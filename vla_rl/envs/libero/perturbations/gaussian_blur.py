"""Blur of a camera out of focus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations import images
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers, PictureEffect
from vla_rl.types import TaskInfo, UInt8Array


@dataclass(frozen=True, slots=True)
class GaussianBlurEffect(PictureEffect):
    """Blur of one episode."""

    sigma: float

    def picture(self, picture: UInt8Array, rng: np.random.Generator) -> UInt8Array:  # noqa: ARG002
        """Blur evenly."""
        return images.gaussian_blur(picture, sigma=self.sigma)


class GaussianBlur(Kind):
    """The picture is blurred evenly."""

    name = "gaussian-blur"
    group = "image"
    summary = "the picture is blurred"
    source = "LIBERO-plus: its severities 2, 4, 6, 8, 10"

    def numbers(self, level: int) -> Numbers:
        """Return the standard deviation."""
        return {"sigma_px": 2.0 * level}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Return the same for every episode."""
        return GaussianBlurEffect(2.0 * level)
