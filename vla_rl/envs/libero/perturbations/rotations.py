"""Rotations as unit quaternions (w, x, y, z)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def about(axis: tuple[float, float, float], degrees: float) -> Vector:
    """Return the rotation about a unit axis by an angle, counter-clockwise seen from the axis's tip, (4,)."""
    half = math.radians(degrees) / 2
    return np.array([math.cos(half), *(math.sin(half) * np.array(axis))])


def product(first: Vector, second: Vector) -> Vector:
    """Return the rotation that turns by `second`, then by `first`, (4,)."""
    w, v = first[0], first[1:]
    x, u = second[0], second[1:]
    return np.array([w * x - v @ u, *(w * u + x * v + np.cross(v, u))])


def turned(rotation: Vector, vector: Vector) -> Vector:
    """Return a vector, (3,), turned by a rotation."""
    w, v = rotation[0], rotation[1:]
    return np.asarray(vector + 2 * np.cross(v, np.cross(v, vector) + w * vector))
