"""Noise of a cheap camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations import images
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers, PictureEffect
from vla_rl.types import TaskInfo, UInt8Array

SIGMAS = (0.08, 0.12, 0.18, 0.26, 0.38)  # of the range from black to white


@dataclass(frozen=True, slots=True)
class _Noise(PictureEffect):
    sigma: float

    def picture(self, picture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
        return images.pixel_noise(picture, sigma=self.sigma, rng=rng)


class PixelNoise(Kind):
    """Normal noise on every pixel and colour, new in every picture."""

    name = "pixel-noise"
    group = "image"
    summary = "the picture has noise"
    source = "ImageNet-C's Gaussian noise (LIBERO-plus has none)"

    def numbers(self, level: int) -> Numbers:
        """Return the standard deviation."""
        return {"sigma_grey_levels": round(255 * SIGMAS[level - 1], 1)}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Return the same for every episode; each picture draws its noise."""
        return _Noise(255 * SIGMAS[level - 1])
