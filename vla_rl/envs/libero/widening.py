"""Initial states that are spread wider than the benchmark's: the scene moves as a whole, and every fixture on its own.

LIBERO draws the place of an object from a square of three centimetres, so a policy that sees nothing can learn where
things are. Here each reset moves the regions that LIBERO draws from. All movable objects move together, so that what
was next to the plate stays next to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WIDENED = "widened"
# Metres, the lowest and the highest shift in x (towards the robot is negative) and y. Farther away the arm does not
# reach, and beyond these the cabinet and the stove would stand among the objects.
OBJECTS = ((-0.08, 0.0), (-0.05, 0.05))
FIXTURES = ((-0.05, 0.0), (-0.03, 0.03))
OVERLAP = 0.004  # metres by which an object may start inside a fixture
_STREAM = 2

Ranges = dict[str, list[list[float]]]


def shifts(problem: dict[str, Any], generator: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Return by how many metres every region moves in x and y.

    Args:
        problem: LIBERO's parsed problem.
        generator: source of all that is random.
    """
    fixtures = {name for names in problem["fixtures"].values() for name in names}
    of_fixtures = {state[2] for state in problem["initial_state"] if len(state) == 3 and state[1] in fixtures}
    together = _draw(OBJECTS, generator)
    return {
        name: _draw(FIXTURES, generator) if name in of_fixtures else together for name in sorted(problem["regions"])
    }


def generator_of(seed: int) -> np.random.Generator:
    """Return the generator of the shifts of a reset."""
    return np.random.default_rng([seed, _STREAM])


def moved(ranges: Ranges, by: dict[str, tuple[float, float]]) -> Ranges:
    """Return the rectangles (x, y, x, y) of all regions after a shift of each."""
    return {
        name: [[low_x + dx, low_y + dy, high_x + dx, high_y + dy] for low_x, low_y, high_x, high_y in rectangles]
        for name, rectangles in ranges.items()
        for dx, dy in [by[name]]
    }


def _draw(
    limits: tuple[tuple[float, float], tuple[float, float]], generator: np.random.Generator
) -> tuple[float, float]:
    (low_x, high_x), (low_y, high_y) = limits
    return float(generator.uniform(low_x, high_x)), float(generator.uniform(low_y, high_y))
