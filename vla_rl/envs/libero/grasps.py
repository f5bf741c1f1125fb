"""Places where the robot's hand can take hold of an object, found from the surfaces of the scene.

The hand points down and closes along one horizontal axis. Seen from above, a grasp needs material of the object that
is no wider than the opening between the pads, and room beside it and around the hand. So a bowl is held by its rim, a
can across its middle, and a flat packet along its narrow side, without a table of objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.libero.scene import Scene

Array = NDArray[np.float64]

# The hand of LIBERO's robot, metres, beside and above the point between its pads (the site `gripper0_grip_site`).
PAD_HALF_WIDTH = 0.008
PAD_BELOW = 0.004
FINGER_HALF_WIDTH = 0.014
FINGER_INNER = 0.036  # from the middle to an open finger's inner side
FINGER_OUTER = 0.070
TIP_BELOW = 0.013  # the fingers' ends
PALM_HALF = (0.036, 0.106)  # across and along the closing axis
PALM_ABOVE = 0.040

DEPTH = 0.022  # below the top of the material
MIN_HELD = 0.007  # height of the material that the pads must meet
MAX_WIDTH = 0.066
GAP = 0.003  # between the fingers' ends and what is below them
STEP_ACROSS, STEP_ALONG = 0.004, 0.002  # of the rays
CEILING = 0.30  # above the object
YAWS = (0.0, 0.5 * np.pi, 0.25 * np.pi, -0.25 * np.pi)  # in the order of preference: turning takes time

OFF_CENTRE_COST = 10.0  # per metre across the closing axis
CROWDED_COST = 0.5  # less than 1 cm of room beside the fingers
FAR_SIDE_COST = 0.05  # a preferred side makes demonstrations alike


@dataclass(frozen=True, slots=True)
class Grasp:
    """Pose of the open hand before it closes."""

    position: Array  # (3,) of the point between the pads, metres
    yaw: float  # radians by which the closing axis is turned from the world's y axis


@dataclass(frozen=True, slots=True)
class _Map:
    """Heights around an object: rows across the closing axis, columns along it."""

    across: Array  # (U,) metres from the object's middle
    along: Array  # (V,)
    heights: Array  # (U, V)
    own: Array  # (U, V) heights of the object alone; -inf beside it
    others: Array  # (U, V) heights of everything else; -inf on the object


def plan_grasp(scene: Scene, name: str) -> Grasp | None:
    """Return the best grasp of an object as it lies now; None if the hand cannot take hold of it."""
    for yaw in YAWS:
        found = min(_grasps(scene, name, yaw), key=lambda pair: pair[0], default=None)
        if found is not None:
            return found[1]
    return None


def _grasps(scene: Scene, name: str, yaw: float) -> Iterator[tuple[float, Grasp]]:
    """Yield every grasp with one closing axis, and its cost."""
    box = scene.bounds(name)
    middle = 0.5 * (box.low + box.high)
    axes = _axes(yaw)
    around = _look(scene, name, axes=axes, middle=middle, half=0.5 * (box.high - box.low), top=box.high[2])
    reach = float(np.abs(around.along).max()) - PALM_HALF[1]
    for row, across in enumerate(around.across):
        if abs(across) > float(np.abs(around.across).max()) - PALM_HALF[0]:
            continue
        own = _highest(around.own, around.across, row, PAD_HALF_WIDTH)
        if not np.isfinite(own).any():
            continue
        below = _highest(around.heights, around.across, row, FINGER_HALF_WIDTH)
        beside = _highest(around.others, around.across, row, FINGER_HALF_WIDTH)
        palm = _highest(around.heights, around.across, row, PALM_HALF[0])
        for along in around.along[np.abs(around.along) <= reach]:
            height, crowded = _height(around.along - along, own=own, below=below, beside=beside, palm=palm)
            if height is None:
                continue
            cost = OFF_CENTRE_COST * abs(across) + CROWDED_COST * crowded + FAR_SIDE_COST * (along < -0.01)
            position = np.array([*(middle[:2] + across * axes[0] + along * axes[1]), height])
            yield cost + _off_middle(around.along - along, own, height), Grasp(position, yaw)


def _axes(yaw: float) -> tuple[Array, Array]:
    """Return the horizontal directions across and along the closing axis, (2,) each."""
    return np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])


def _look(scene: Scene, name: str, *, axes: tuple[Array, Array], middle: Array, half: Array, top: float) -> _Map:
    across_half, along_half = (float(np.abs(axis) @ half[:2]) for axis in axes)
    across = _ticks(across_half + PALM_HALF[0], STEP_ACROSS)
    along = _ticks(along_half + PALM_HALF[1], STEP_ALONG)
    grid = across[:, None, None] * axes[0] + along[None, :, None] * axes[1] + middle[:2]
    seen = scene.surface(grid.reshape(-1, 2), ceiling=top + CEILING)
    heights = seen.heights.reshape(len(across), len(along))
    is_own = seen.owners.reshape(heights.shape) == scene.owner_of(name)
    return _Map(across, along, heights, np.where(is_own, heights, -np.inf), np.where(is_own, -np.inf, heights))


def _ticks(half: float, step: float) -> Array:
    count = int(np.ceil(half / step))
    return step * np.arange(-count, count + 1, dtype=np.float64)


def _highest(heights: Array, across: Array, row: int, half_width: float) -> Array:
    """Return the highest surface of a strip along the closing axis, (V,)."""
    strip = np.abs(across - across[row]) <= half_width + 1e-9
    highest: Array = heights[strip].max(axis=0)
    return highest


def _height(offsets: Array, *, own: Array, below: Array, beside: Array, palm: Array) -> tuple[float | None, bool]:
    """Return how high the hand must be to take hold around a place, and whether there is little room.

    Args:
        offsets: (V,) of each column from the place, along the closing axis.
        own: (V,) the object in the pads' strip.
        below: (V,) everything in the fingers' strip.
        beside: (V,) the same without the object.
        palm: (V,) everything in the palm's strip.

    Returns:
        None if there is no grasp here.
    """
    away = np.abs(offsets)
    between = away < FINGER_INNER
    top = own[between].max()
    if not np.isfinite(top):
        return None, False
    fingers = (away >= FINGER_INNER) & (away <= FINGER_OUTER)
    lowest = max(below[fingers].max(), beside[between].max()) + TIP_BELOW + GAP
    lowest = max(lowest, palm[away <= PALM_HALF[1]].max() - PALM_ABOVE)
    height = max(top - DEPTH, lowest)
    held = offsets[between & (own > height - PAD_BELOW)]
    if top - (height - PAD_BELOW) < MIN_HELD or not len(held) or np.ptp(held) + STEP_ALONG > MAX_WIDTH:
        return None, False
    roomy = (away >= FINGER_INNER - 0.01) & (away <= FINGER_OUTER + 0.01)
    return float(height), bool(beside[roomy].max() + TIP_BELOW + GAP > height)


def _off_middle(offsets: Array, own: Array, height: float) -> float:
    """Return the cost of material that is not in the middle between the pads, which closing would push."""
    held = offsets[(np.abs(offsets) < FINGER_INNER) & (own > height - PAD_BELOW)]
    return float(40.0 * abs(0.5 * (held.min() + held.max())))
