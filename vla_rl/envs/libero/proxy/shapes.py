"""Primitive shapes, and their few compositions that make bowls, cans and mugs.

Metres and radians; quaternions are (w, x, y, z). Only boxes collide, because MuJoCo gives them several contact points
each, which keeps objects at rest; cylinders are only visual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
Colour = tuple[int, int, int] | tuple[int, int, int, float]  # RGB in 0-255 and alpha in 0-1
Axis = Literal["x", "y", "z"]

NO_TURN: Quaternion = (1.0, 0.0, 0.0, 0.0)
_HALF = math.sqrt(0.5)
# Rotation that takes the z axis to the named one.
_AXIS_TURN: dict[Axis, Quaternion] = {"x": (_HALF, 0.0, _HALF, 0.0), "y": (_HALF, -_HALF, 0.0, 0.0), "z": NO_TURN}


@dataclass(frozen=True, slots=True)
class Shape:
    """One geom, or a collision and a visual geom of the same shape."""

    kind: Literal["box", "cylinder", "capsule", "ellipsoid"]
    pos: Vector
    size: tuple[float, ...]  # half sizes in MuJoCo's order: box and ellipsoid 3, cylinder and capsule radius, half
    colour: Colour
    quat: Quaternion = NO_TURN
    collides: bool = True
    visible: bool = True

    @property
    def volume(self) -> float:
        """Return the volume in cubic metres; only boxes collide, so only they have one."""
        assert self.kind == "box"
        return 8.0 * math.prod(self.size)


Shapes = tuple[Shape, ...]


def multiply(first: Quaternion, second: Quaternion) -> Quaternion:
    """Return the rotation `second` followed by `first`."""
    a, b, c, d = first
    e, f, g, h = second
    return (
        a * e - b * f - c * g - d * h,
        a * f + b * e + c * h - d * g,
        a * g - b * h + c * e + d * f,
        a * h + b * g - c * f + d * e,
    )


def rotate(quat: Quaternion, vector: Vector) -> Vector:
    """Rotate a vector."""
    w, x, y, z = multiply(multiply(quat, (0.0, *vector)), (quat[0], -quat[1], -quat[2], -quat[3]))
    del w
    return (x, y, z)


def about(axis: Axis, angle: float) -> Quaternion:
    """Return the rotation by an angle about an axis."""
    sine = math.sin(angle / 2.0)
    return (math.cos(angle / 2.0), sine * (axis == "x"), sine * (axis == "y"), sine * (axis == "z"))


def box(
    low: Vector,
    high: Vector,
    colour: Colour,
    *,
    collides: bool = True,
    visible: bool = True,
    quat: Quaternion = NO_TURN,
) -> Shape:
    """Return a box between two corners (before `quat` rotates it about its own centre)."""
    corners = np.array([low, high])
    centre, half = corners.mean(axis=0), (corners[1] - corners[0]) / 2.0
    assert (half > 0).all(), (low, high)
    return Shape("box", _vector(centre), tuple(half.tolist()), colour, quat, collides, visible)


def disk(
    radius: float,
    low: float,
    high: float,
    colour: Colour,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    axis: Axis = "z",
    sides: int = 8,
    visible: bool = True,
) -> Shapes:
    """Return an upright cylinder along an axis: boxes whose union is a regular polygon collide, a cylinder is visible.

    Rectangle k of the polygon spans from one edge to the opposite one and is as wide as an edge. Each piece is placed
    in the frame where the axis is z, and is then rotated.
    """
    edge = radius * math.tan(math.pi / sides)
    middle, half = (low + high) / 2.0, (high - low) / 2.0
    pos: Vector = (*centre, middle)
    pieces = [
        Shape("box", pos, (radius, edge, half), colour, about("z", 2.0 * math.pi * k / sides), True, False)
        for k in range(sides // 2)
    ]
    if visible:
        pieces.append(Shape("cylinder", pos, (radius, half), colour, NO_TURN, False, True))
    return tuple(_along(axis, piece) for piece in pieces)


def band(
    radius: float,
    low: float,
    high: float,
    colour: Colour,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    axis: Axis = "z",
) -> Shape:
    """Return a visual cylinder, such as a label or a cap; `centre` as in `disk`."""
    pos: Vector = (*centre, (low + high) / 2.0)
    return _along(axis, Shape("cylinder", pos, (radius, (high - low) / 2.0), colour, NO_TURN, False, True))


def ring(
    bottom: tuple[float, float],
    top: tuple[float, float],
    thickness: float,
    colour: Colour,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    sides: int = 12,
) -> Shapes:
    """Return the wall of an upright vessel: boxes around the z axis, leaning outwards.

    Args:
        bottom: (inner radius, z) of the lower edge.
        top: the same of the upper edge; for a cone that opens upwards its radius is larger.
        thickness: thickness of the wall, added outside.
        colour: colour of the whole wall.
        centre: x and y of the axis.
        sides: number of boxes.
    """
    (low_radius, low_z), (high_radius, high_z) = bottom, top
    length = math.hypot(high_radius - low_radius, high_z - low_z)
    lean = math.atan2(high_radius - low_radius, high_z - low_z)
    outwards = (thickness / 2.0 * math.cos(lean), -thickness / 2.0 * math.sin(lean))
    radius, z = (low_radius + high_radius) / 2.0 + outwards[0], (low_z + high_z) / 2.0 + outwards[1]
    half_width = (max(low_radius, high_radius) + thickness) * math.tan(math.pi / sides)
    pieces = []
    for k in range(sides):
        angle = 2.0 * math.pi * k / sides
        pos = (centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle), z)
        turn = multiply(about("z", angle), about("y", lean))
        pieces.append(Shape("box", pos, (thickness / 2.0, half_width, length / 2.0), colour, turn))
    return tuple(pieces)


def hollow(low: Vector, high: Vector, walls: dict[str, float], colour: Colour) -> Shapes:
    """Return a box with some of its walls: name ('-x', ..., '+z') to thickness; corners belong to earlier names."""
    pieces = []
    inner_low, inner_high = list(low), list(high)
    for name, thickness in walls.items():
        index = "xyz".index(name[1])
        wall_low, wall_high = list(inner_low), list(inner_high)
        if name[0] == "-":
            wall_high[index] = inner_low[index] = inner_low[index] + thickness
        else:
            wall_low[index] = inner_high[index] = inner_high[index] - thickness
        pieces.append(box(_vector(wall_low), _vector(wall_high), colour))
    return tuple(pieces)


def drawn(shapes: Shapes) -> Shapes:
    """Return the same shapes, visible but without contact."""
    return tuple(replace(shape, collides=False) for shape in shapes)


def _along(axis: Axis, shape: Shape) -> Shape:
    turn = _AXIS_TURN[axis]
    return replace(shape, pos=rotate(turn, shape.pos), quat=multiply(turn, shape.quat))


def _vector(values: object) -> Vector:
    x, y, z = (float(value) for value in values)  # type: ignore[attr-defined]
    return (x, y, z)
