"""Free bodies of a running simulation: what rests on what, where there is room, and how to move them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.libero.perturbations.kind import SCENE_CAMERA
from vla_rl.envs.libero.perturbations.repaint import surface_body

if TYPE_CHECKING:
    from vla_rl.envs.libero.simulation import Simulation

_LEVEL_M = 0.002  # heights that differ by less are one surface
_ABOVE_M = 1.5  # where rays start, over the surface's body
_EDGE_M = 0.05  # how far an object's origin stays from the surface's edge
_STEP_M = 1e-4  # by which a ray goes on behind what it met
_DOWN = np.array([0.0, 0.0, -1.0])
_SOLID_AND_DRAWN = np.array([1, 1, 0, 0, 0, 0], dtype=np.uint8)  # geom groups that a ray can hit


class Bodies:
    """Free bodies in MuJoCo's model. A body is named by its number; its parts count as the body itself."""

    def __init__(self, simulation: Simulation) -> None:
        """Look up the bodies with free joints, and the surface that they stand on."""
        self._mujoco, self._model, self._data = simulation.mujoco, simulation.model, simulation.data
        free = [joint for joint in range(self._model.njnt) if self._model.jnt_type[joint] == 0]
        self._positions = {
            int(self._model.jnt_bodyid[joint]): int(self._model.jnt_qposadr[joint]) for joint in free
        }  # where the seven numbers of a body's pose begin
        self._velocities = {int(self._model.jnt_bodyid[joint]): int(self._model.jnt_dofadr[joint]) for joint in free}
        self.surface = int(self._model.body_rootid[surface_body(self._mujoco, self._model)])

    @property
    def free(self) -> list[int]:
        """Return the bodies that can be moved, in order."""
        return sorted(self._positions)

    def number(self, name: str) -> int:
        """Return the body of a name."""
        return int(self._model.body(name).id)

    def pose(self, body: int) -> NDArray[np.float64]:
        """Return a view of a body's pose: position 3 in metres, quaternion 4 (w, x, y, z)."""
        first = self._positions[body]
        return np.asarray(self._data.qpos[first : first + 7])

    def place(
        self, body: int, position: Sequence[float] | NDArray[np.float64], quaternion: NDArray[np.float64]
    ) -> None:
        """Put a body somewhere, at rest."""
        self.pose(body)[:] = (*position, *quaternion)
        first = self._velocities[body]
        self._data.qvel[first : first + 6] = 0.0

    def update(self) -> None:
        """Compute places and contacts from the poses."""
        self._mujoco.mj_forward(self._model, self._data)

    def contacts(self) -> set[tuple[int, int]]:
        """Return the pairs of bodies that touch, both ways round; 0 is the world."""
        pairs = set()
        for number in range(self._data.ncon):
            geoms = self._data.contact[number].geom
            first, second = (int(self._model.body_rootid[self._model.geom_bodyid[geom]]) for geom in geoms)
            if first != second:
                pairs |= {(first, second), (second, first)}
        return pairs

    def stacks(self) -> list[list[int]]:
        """Return the free bodies in groups that touch each other, of those that nothing but the surface supports."""
        contacts = self.contacts()
        waiting, found = self.free, []
        while waiting:
            group = [waiting.pop(0)]
            for body in group:  # grows while it is walked through
                joined = [other for other in waiting if (body, other) in contacts]
                group += joined
                waiting = [other for other in waiting if other not in joined]
            if self._outside(group, contacts) == {self.surface}:
                found.append(group)
        return found

    def stands_alone(self, group: Iterable[int]) -> bool:
        """Return whether a group of bodies touches the surface and nothing else."""
        return self._outside(group, self.contacts()) == {self.surface}

    def touches_an_object(self, body: int) -> bool:
        """Return whether a body touches anything but the surface."""
        return bool(self._outside([body], self.contacts()) - {self.surface})

    def is_supported(self, body: int) -> bool:
        """Return whether the surface extends `_EDGE_M` around a body's origin, whatever else is on it."""
        x, y, _ = self._data.xpos[body]
        corners = [(x + dx, y + dy) for dx in (-_EDGE_M, _EDGE_M) for dy in (-_EDGE_M, _EDGE_M)]
        return all(self._height(*point, through=True) is not None for point in corners)

    def height_of_room(self, x: float, y: float, *, radius: float) -> float | None:
        """Return the height of the surface at a place; None unless it is level and free within a radius in metres."""
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        ring = [(x + r * np.cos(a), y + r * np.sin(a)) for r in (radius / 3, 2 * radius / 3, radius) for a in angles]
        heights = [self._height(*point) for point in [(x, y), *ring]]
        known = [height for height in heights if height is not None]
        if len(known) < len(heights) or max(known) - min(known) > _LEVEL_M:
            return None
        return known[0]

    def in_view(self, point: Sequence[float]) -> bool:
        """Return whether a point, in metres, is in the inner nine tenths of the scene camera's picture."""
        camera = self._model.camera(SCENE_CAMERA)
        right, up, back = self._data.cam_xmat[camera.id].reshape(3, 3).T @ (point - self._data.cam_xpos[camera.id])
        reach = 0.9 * -back * np.tan(np.radians(camera.fovy[0]) / 2)
        return bool(abs(right) < reach and abs(up) < reach)

    def lowest_point(self, body: int) -> float:
        """Return the height of the lowest corner of a body's collision boxes."""
        corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        lowest = np.inf
        for geom in range(self._model.ngeom):
            if self._model.body_rootid[self._model.geom_bodyid[geom]] == body and self._model.geom_group[geom] == 0:
                centre, half = np.split(self._model.geom_aabb[geom], 2)
                turned = (centre + corners * half) @ self._data.geom_xmat[geom].reshape(3, 3).T
                lowest = min(lowest, float((self._data.geom_xpos[geom] + turned)[:, 2].min()))
        return lowest

    def _outside(self, group: Iterable[int], contacts: set[tuple[int, int]]) -> set[int]:
        inside = set(group)
        return {second for first, second in contacts if first in inside and second not in inside}

    def _height(self, x: float, y: float, *, through: bool = False) -> float | None:
        """Return the height at which a ray from above meets the surface; None if it meets something else first.

        With `through` it passes everything else; None if there is no surface at this place.
        """
        start = np.array([x, y, self._data.xpos[self.surface][2] + _ABOVE_M])
        geom = np.array([-1], dtype=np.int32)
        while True:
            reach = self._mujoco.mj_ray(self._model, self._data, start, _DOWN, _SOLID_AND_DRAWN, 1, -1, geom)
            if reach < 0:
                return None
            start[2] -= reach
            if self._model.body_rootid[self._model.geom_bodyid[geom[0]]] == self.surface:
                return float(start[2])
            if not through:
                return None
            start[2] -= _STEP_M
