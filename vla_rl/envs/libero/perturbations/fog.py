"""Fog between camera and table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.perturbations import images
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers, PictureEffect
from vla_rl.types import TaskInfo, UInt8Array

SEVERITIES = (  # of LIBERO-plus: amplitude and decay
    *((0.5, 3.0), (1.0, 2.8), (1.5, 2.5), (2.0, 2.2), (2.5, 2.0)),
    *((3.0, 1.8), (3.5, 1.6), (4.0, 1.5), (4.5, 1.4), (5.0, 1.3)),
)
SETTINGS = SEVERITIES[1::2]


@dataclass(frozen=True, slots=True)
class FogEffect(PictureEffect):
    """Fog of one episode."""

    amplitude: float
    decay: float

    def picture(self, picture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
        """Lay a new cloud over this picture."""
        return images.fog(picture, amplitude=self.amplitude, decay=self.decay, rng=rng)


class Fog(Kind):
    """A cloud lies over the picture, a new one over every picture."""

    name = "fog"
    group = "image"
    summary = "fog lies over the picture"
    source = "LIBERO-plus: its severities 2, 4, 6, 8, 10"

    def numbers(self, level: int) -> Numbers:
        """Return the fog's density, and how much smoother its small structures are than its large ones."""
        amplitude, decay = SETTINGS[level - 1]
        return {"amplitude": amplitude, "roughness_decay": decay}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Return the same for every episode; each picture draws its fog."""
        return FogEffect(*SETTINGS[level - 1])
