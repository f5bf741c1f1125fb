"""More objects on the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vla_rl.envs.libero.perturbations.bodies import Bodies
from vla_rl.envs.libero.perturbations.kind import Effect, Kind, Numbers
from vla_rl.envs.libero.perturbations.rotations import Vector, about, product
from vla_rl.types import TaskInfo

if TYPE_CHECKING:
    from vla_rl.envs.libero.simulation import Simulation

# Objects of LIBERO, and the axis of each that points up when it stands.
CATEGORIES: dict[str, Literal["y", "z"]] = {
    "alphabet_soup": "y",
    "bbq_sauce": "z",
    "butter": "z",
    "chocolate_pudding": "z",
    "cookies": "z",
    "cream_cheese": "z",
    "ketchup": "y",
    "milk": "y",
    "orange_juice": "y",
    "red_coffee_mug": "z",
    "salad_dressing": "y",
    "tomato_sauce": "y",
    "wine_bottle": "z",
}
NAME = "vla_rl_distractor"
AROUND_M = 0.15  # how far from the task's objects, at most, along either axis
CLEARANCES_M = (0.12, 0.10, 0.08, 0.06)  # free radius around the centre: the first one that is found in 200 draws
ATTEMPTS = 200
_ASIDE = (-8.0, 0.0, 0.5)  # behind the wall: an object waits here, and stays if there is no room
_LIFT_M = 0.002


@dataclass(frozen=True, slots=True)
class _Distractors(Effect):
    count: int
    seed: int

    def extra_objects(self, present: frozenset[str]) -> tuple[str, ...]:
        absent = [category for category in CATEGORIES if category not in present]
        rng = np.random.default_rng([self.seed, 0])
        return tuple(absent[number] for number in rng.permutation(len(absent))[: self.count])

    def before_settling(self, simulation: Simulation) -> None:
        rng = np.random.default_rng([self.seed, 1])
        bodies = Bodies(simulation)
        added = {bodies.number(f"{name}_main"): category for name, category in simulation.extra_objects.items()}
        for place, body in enumerate(added):
            bodies.place(body, (_ASIDE[0] - place, *_ASIDE[1:]), np.array([1.0, 0.0, 0.0, 0.0]))
        bodies.update()
        own = np.array([bodies.pose(body)[:2] for body in bodies.free if body not in added])
        low, high = own.min(axis=0) - AROUND_M, own.max(axis=0) + AROUND_M
        for body, category in added.items():
            _stand(bodies, body, category, low, high, rng)


def _stand(bodies: Bodies, body: int, category: str, low: Vector, high: Vector, rng: np.random.Generator) -> None:
    """Put a body on a free place between two corners of the surface, upright."""
    upright = about((1.0, 0.0, 0.0), 90.0) if CATEGORIES[category] == "y" else about((1.0, 0.0, 0.0), 0.0)
    aside = bodies.pose(body).copy()
    turned = product(about((0.0, 0.0, 1.0), float(rng.uniform(0, 360))), upright)
    for clearance in CLEARANCES_M:
        for _ in range(ATTEMPTS):
            x, y = (float(value) for value in rng.uniform(low, high))
            height = bodies.height_of_room(x, y, radius=clearance)
            if height is not None and bodies.in_view((x, y, height)):
                bodies.place(body, (x, y, 0.0), turned)
                bodies.update()
                bodies.pose(body)[2] = height + _LIFT_M - bodies.lowest_point(body)
                bodies.update()
                if not bodies.touches_an_object(body):
                    return
    bodies.place(body, aside[:3], aside[3:])
    bodies.update()


class Distractors(Kind):
    """Objects of LIBERO that the scene does not have stand around the task's objects, in the camera's view.

    An object for which there is no room stays behind the wall.
    """

    name = "distractors"
    group = "objects"
    summary = "more objects stand around"
    source = "LIBERO-plus: 1 to 5 objects; its own objects are in an archive, these are of LIBERO"
    moves = True

    def numbers(self, level: int) -> Numbers:
        """Return the number of objects."""
        return {
            "objects": level,
            "categories": list(CATEGORIES),
            "clearance_m": list(CLEARANCES_M),
            "around_the_task_m": AROUND_M,
        }

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw the seed of categories and places."""
        return _Distractors(level, int(rng.integers(2**31)))
