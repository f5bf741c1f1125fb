"""Arm in another pose at the start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers
from vla_rl.types import TaskInfo

if TYPE_CHECKING:
    from vla_rl.envs.libero.simulation import Simulation

REST = np.array([0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, np.pi / 4])  # radians, LIBERO's start
POSES_PER_LEVEL = 100


@cache
def poses() -> NDArray[np.float64]:
    """Return LIBERO-plus's 500 poses of the seven joints, (5, 100, 7) radians, by level.

    Each is the rest pose plus a vector of length 0.1 · level radians in a random direction.
    """
    drawn = np.random.RandomState(42).standard_normal((500, 7))
    directions = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).reshape(5, POSES_PER_LEVEL, 7)
    return np.asarray(REST + 0.1 * np.arange(1, 6)[:, None, None] * directions)


@dataclass(frozen=True, slots=True)
class PosedEffect(Effect):
    """Pose of one episode."""

    candidates: NDArray[np.float64]  # (100, 7), in the order in which they are tried

    def before_settling(self, simulation: Simulation) -> None:
        """Take the first pose in which the arm touches nothing; the last one if there is none."""
        for pose in self.candidates:
            simulation.set_arm(pose)
            if not simulation.robot_touches():
                return


class RobotPose(Kind):
    """The arm starts in one of LIBERO-plus's poses, and its controller starts from there.

    LIBERO-plus sets the pose in the reset, and its stored states, set afterwards, overwrite most of it; here the pose
    is set after the stored state. So a level is harder here than a pose of the same length in its published numbers.
    """

    name = "robot-pose"
    group = "robot"
    summary = "the arm starts in another pose"
    source = "LIBERO-plus: its 500 poses; set after the stored state, which would undo them"
    moves = True

    def numbers(self, level: int) -> Numbers:
        """Return the distance in joint space, and the numbers of LIBERO-plus's poses."""
        first = POSES_PER_LEVEL * (level - 1) + 1
        return {"joint_distance_rad": round(0.1 * level, 1), "poses": [first, first + POSES_PER_LEVEL - 1]}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw the order in which poses are tried."""
        return PosedEffect(rng.permutation(poses()[level - 1]))
