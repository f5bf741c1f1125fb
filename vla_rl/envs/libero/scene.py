"""Full state of an episode's scene, for scripted experts: poses, the goal, and the heights of surfaces.

Policies see pictures and proprioception alone. Scripted experts, checks and measurements need more, and this is the
part of the environment that gives it to them. Nothing here changes the simulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ROBOT = ("robot0_", "gripper0_", "mount0_")
_COLLISION_GROUP = 0
_SKIN = 1e-4  # m below the surface of the robot from which a ray goes on
_DOWN = np.array([0.0, 0.0, -1.0])


@dataclass(frozen=True, slots=True)
class Placement:
    """Pose in the world's frame."""

    position: Array  # (3,) metres
    rotation: Array  # (3, 3) the columns are the axes of the body or site


@dataclass(frozen=True, slots=True)
class Box:
    """Axis-aligned bounds of an object's collision geometry in the world's frame, metres."""

    low: Array  # (3,)
    high: Array  # (3,)


@dataclass(frozen=True, slots=True)
class Surface:
    """Highest surface below each point of a set."""

    heights: Array  # (n,) metres; -inf where nothing is below
    owners: NDArray[np.int64]  # (n,) `Scene.owner_of` of what is there; -1 where nothing is


class Scene:
    """Poses, goal and surfaces of the episode that is running; made anew by every reset."""

    def __init__(self, mujoco: Any, env: Any) -> None:  # noqa: ANN401 - both are untyped
        """Look at an environment of robosuite that was just reset."""
        self._mujoco = mujoco
        self._env = env
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._groups = np.zeros(6, np.uint8)
        self._groups[_COLLISION_GROUP] = 1

    @property
    def goal(self) -> tuple[tuple[str, ...], ...]:
        """Return the predicates that must hold, like `("on", "akita_black_bowl_1", "plate_1")`."""
        return tuple(tuple(str(word) for word in state) for state in self._env.parsed_problem["goal_state"])

    @property
    def objects(self) -> tuple[str, ...]:
        """Return the names of the objects that can be moved, in the order of the task's definition."""
        return tuple(self._env.objects_dict)

    @property
    def fixtures(self) -> tuple[str, ...]:
        """Return the names of the fixtures; the table is not among them."""
        return tuple(self._env.fixtures_dict)

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the names of the regions that goals and initial states refer to."""
        return tuple(self._env.object_sites_dict)

    def pose(self, name: str) -> Placement:
        """Return where an object, a fixture or a site is.

        As in LIBERO's own goal checks, the pose is that of the last substep's beginning, 2 ms ago.

        Raises:
            KeyError: there is nothing of this name.
        """
        if name in self._env.obj_body_id:
            body = self._env.obj_body_id[name]
            return Placement(self._data.xpos[body].copy(), self._data.xmat[body].reshape(3, 3).copy())
        if name in self._env.object_sites_dict:
            site = self._model.site(name).id
            return Placement(self._data.site_xpos[site].copy(), self._data.site_xmat[site].reshape(3, 3).copy())
        known = ", ".join((*self.objects, *self.fixtures, *self.sites))
        raise KeyError(f"{name!r} is neither an object nor a site; there are {known}")

    def bounds(self, name: str) -> Box:
        """Return the bounds of an object or fixture, from the bounding boxes of its collision geoms."""
        geoms = self._geoms_of[self.owner_of(name)]
        rotations = self._data.geom_xmat[geoms].reshape(-1, 3, 3)
        middles, halves = self._model.geom_aabb[geoms, :3], self._model.geom_aabb[geoms, 3:]
        middles = self._data.geom_xpos[geoms] + np.einsum("nij,nj->ni", rotations, middles)
        halves = np.einsum("nij,nj->ni", np.abs(rotations), halves)
        return Box((middles - halves).min(axis=0), (middles + halves).max(axis=0))

    def owner_of(self, name: str) -> int:
        """Return the number by which `surface` names an object or fixture."""
        return int(self._model.body_rootid[self._env.obj_body_id[name]])

    def surface(self, points: Array, *, ceiling: float, without: str | None = None) -> Surface:
        """Return the highest surface below each point (n, 2) of the horizontal plane, seen from a height.

        The robot does not count, nor does the object `without`. Only collision geometry counts.

        Args:
            points: x and y in metres.
            ceiling: height from which rays go down.
            without: an object to look through.
        """
        ignored = self._robot_roots | (set() if without is None else {self.owner_of(without)})
        heights, owners = np.full(len(points), -np.inf), np.full(len(points), -1)
        geom = np.zeros(1, np.int32)
        start = np.empty(3)
        roots = self._model.body_rootid[self._model.geom_bodyid]
        with self._all_visible():
            for index, (x, y) in enumerate(points):
                start[:] = x, y, ceiling
                while True:
                    distance = self._mujoco.mj_ray(self._model, self._data, start, _DOWN, self._groups, 1, -1, geom)
                    if geom[0] < 0:
                        break
                    start[2] -= distance
                    owner = int(roots[geom[0]])
                    if owner not in ignored:
                        heights[index], owners[index] = start[2], owner
                        break
                    start[2] -= _SKIN
        return Surface(heights, owners)

    @contextmanager
    def _all_visible(self) -> Iterator[None]:
        """Make transparent geoms opaque, because rays pass through them, and put the colours back."""
        colours = (self._model.geom_rgba, self._model.mat_rgba)
        before = [colour[:, 3].copy() for colour in colours]
        try:
            for colour in colours:
                colour[:, 3] = 1.0
            yield
        finally:
            for colour, alpha in zip(colours, before, strict=True):
                colour[:, 3] = alpha

    @cached_property
    def _robot_roots(self) -> set[int]:
        bodies = range(1, self._model.nbody)
        return {int(self._model.body_rootid[body]) for body in bodies if self._model.body(body).name.startswith(_ROBOT)}

    @cached_property
    def _geoms_of(self) -> dict[int, NDArray[np.int64]]:
        roots = self._model.body_rootid[self._model.geom_bodyid]
        collides = self._model.geom_group == _COLLISION_GROUP
        return {int(root): np.flatnonzero(collides & (roots == root)) for root in np.unique(roots)}
