"""Imprecise motors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers
from vla_rl.types import TaskInfo

MOTION = 6  # numbers of an action that move the hand; the seventh is the gripper's


@dataclass(frozen=True, slots=True)
class _Noise(Effect):
    sigma: float

    def action(self, action: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        noisy = action.copy()
        noisy[:MOTION] = np.clip(action[:MOTION] + rng.normal(0.0, self.sigma, MOTION), -1.0, 1.0)
        return noisy


class ActionNoise(Kind):
    """Normal noise on the six numbers of the hand's motion, new in every control step; the gripper has none."""

    name = "action-noise"
    group = "action"
    summary = "actions are executed with noise"
    source = "ours (LIBERO-plus has none)"
    moves = True

    def numbers(self, level: int) -> Numbers:
        """Return the standard deviation, in an action's own units, whose range is -1 to 1."""
        return {"sigma_action_units": round(0.05 * level, 2)}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Return the same for every episode; each control step draws its noise."""
        return _Noise(round(0.05 * level, 2))
