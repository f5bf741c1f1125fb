"""Pictures that are lost on their way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers
from vla_rl.types import TaskInfo, UInt8Array


class _Dropped(Effect):
    def __init__(self, probability: float) -> None:
        self._probability = probability
        self._last: UInt8Array | None = None

    def frames(self, frames: UInt8Array, cameras: Sequence[str], rng: np.random.Generator) -> UInt8Array:  # noqa: ARG002
        if self._last is None or rng.random() >= self._probability:
            self._last = frames
        return self._last

    def filmed(self, frames: UInt8Array, cameras: Sequence[str], rng: np.random.Generator) -> UInt8Array:  # noqa: ARG002
        """Show the scene as it is; a picture drawn for a video is no decision's."""
        return frames


class DroppedFrames(Kind):
    """A decision sees the pictures of the decision before, of all cameras; the first one never does."""

    name = "dropped-frames"
    group = "image"
    summary = "pictures are lost, and the policy sees the last ones again"
    source = "ours (LIBERO-plus has none)"

    def numbers(self, level: int) -> Numbers:
        """Return the probability per decision."""
        return {"probability": round(0.15 * level, 2)}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Start without a picture; each decision draws whether its own is lost."""
        return _Dropped(round(0.15 * level, 2))
