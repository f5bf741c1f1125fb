"""Objects in other places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vla_rl.envs.libero.perturbations.bodies import Bodies
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers
from vla_rl.types import TaskInfo

if TYPE_CHECKING:
    from vla_rl.envs.libero.simulation import Simulation

RADII_M = {"libero_spatial": 0.01, "libero_object": 0.03, "libero_goal": 0.02, "libero_10": 0.01, "libero_90": 0.01}
LIVING_ROOM_RADIUS_M = 0.02
ATTEMPTS = 100


def radius(level: int, task: TaskInfo) -> float:
    """Return the most that an object moves in a task, in metres."""
    per_level = LIVING_ROOM_RADIUS_M if task.name.startswith("LIVING_ROOM") else RADII_M[task.suite]
    return round(per_level * level, 3)


@dataclass(frozen=True, slots=True)
class Displaced(Effect):
    """Objects moved by at most `radius` metres; what stands on the surface moves with what lies on it."""

    radius: float
    seed: int

    def after_settling(self, simulation: Simulation) -> bool:
        """Move every group to the first place that is free of 100 drawn ones."""
        rng = np.random.default_rng(self.seed)
        bodies = Bodies(simulation)
        for group in bodies.stacks():
            before = [bodies.pose(body).copy() for body in group]
            for _ in range(ATTEMPTS):
                angle, distance = rng.uniform(0, 2 * np.pi), self.radius * np.sqrt(rng.random())
                for body, pose in zip(group, before, strict=True):
                    bodies.pose(body)[:2] = pose[:2] + distance * np.array([np.cos(angle), np.sin(angle)])
                bodies.update()
                if bodies.stands_alone(group) and all(map(bodies.is_supported, group)):
                    break
            else:
                for body, pose in zip(group, before, strict=True):
                    bodies.pose(body)[:] = pose
                bodies.update()
        return True


class Placement(Kind):
    """Every object that stands on the table or the floor moves on its own, with what lies on it.

    The objects have come to rest before, and are moved where they touch nothing else and are at least
    5 cm from the edge; one without such a place in 100
    draws stays. Fixtures, and objects in or on them, stay too; LIBERO-plus moves fixtures as well.
    """

    name = "placement"
    group = "objects"
    summary = "the objects stand elsewhere"
    source = "LIBERO-plus: its discs; fixtures, and what is on them, stay"
    moves = True

    def numbers(self, level: int) -> Numbers:
        """Return the radius of the disc from which the displacement is drawn, uniformly."""
        radii = {suite: round(per_level * level, 3) for suite, per_level in RADII_M.items()}
        return {"disc_radius_m": {**radii, "living rooms": round(LIVING_ROOM_RADIUS_M * level, 3)}}

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:
        """Draw the displacements' seed."""
        return Displaced(radius(level, task), int(rng.integers(2**31)))
