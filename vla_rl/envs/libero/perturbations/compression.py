"""Compression on the way from the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations import images
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers, PictureEffect
from vla_rl.types import TaskInfo, UInt8Array

QUALITIES = (25, 18, 15, 10, 7)


@dataclass(frozen=True, slots=True)
class _Jpeg(PictureEffect):
    quality: int

    def picture(self, picture: UInt8Array, rng: np.random.Generator) -> UInt8Array:  # noqa: ARG002
        return images.compress(picture, quality=self.quality)


class Compression(Kind):
    """The picture went through JPEG."""

    name = "compression"
    group = "image"
    summary = "the picture is compressed"
    source = "ImageNet-C's JPEG qualities (LIBERO-plus has none)"

    def numbers(self, level: int) -> Numbers:
        """Return the quality."""
        return {"jpeg_quality": QUALITIES[level - 1]}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Return the same for every episode."""
        return _Jpeg(QUALITIES[level - 1])
