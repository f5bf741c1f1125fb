"""Measurements that detect a MuJoCo with which LIBERO's published scores do not hold, without any policy.

Two known changes were measured with full assets on a software renderer:

* Contact distances of touching boxes, in 3.4. In Spatial task 5 a bowl falls onto a ramekin while the scene settles. Up
  to 3.3.7 (3.1.6, 3.2.7, 3.3.0, 3.3.3 and 3.3.7 alike) it comes to rest 14.6 mm to the side of its initial position,
  tilted by 16 degrees; in 3.4.0 and 3.9.0 37 mm to the side, 8 mm higher and still tilting. Twelve standard states
  agree to 0.01 mm. The proxy's bowl is round and rests flat in both, but lower after ten steps: at 934.3 mm up to
  3.3.3, at 933.8 mm in 3.4.0.
* The reading of textures marked as sRGB, in 3.3.3: they are converted to linear values and never converted back. A grey
  of 128 is drawn as 128 up to 3.3.2 and as 55 from 3.3.3 to 3.9.0. LIBERO's floors become darker only if their textures
  have the mark: with it the floor of Object task 0 falls from 179 to 122, without it (proxy assets, re-encoded copies)
  it stays at 179 on every version. So both the floor and a marked texture are measured.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.envs.libero import shim
from vla_rl.envs.libero.assets import AssetKind, Assets, resolve_assets
from vla_rl.envs.libero.cameras import Cameras
from vla_rl.envs.libero.env import SETTLE_ACTION, SETTLE_STEPS, LiberoEnv
from vla_rl.envs.libero.init_states import read_states
from vla_rl.envs.libero.proxy.robot import simplify_visuals
from vla_rl.envs.libero.simulation import Simulation
from vla_rl.envs.libero.suites import libero_task, task_files
from vla_rl.types import TaskInfo

SETTLE_TASK = ("libero_spatial", 5)
SETTLE_STATES = (0, 24, 49)  # first, middle and last of the standard states
BOWL = "akita_black_bowl_1_main"

FLOOR_TASK = ("libero_object", 0)
FLOOR_IMAGE_SIZE = 128
FLOOR_ROWS, FLOOR_COLUMNS = slice(108, 124), slice(40, 88)  # below every object, in the upright scene camera

MARKED_GREY = 128


@dataclass(frozen=True, slots=True)
class Settling:
    """Pose of an object after the settle steps."""

    drift_mm: float  # horizontal distance from its position in the stored state
    tilt_degrees: float  # tilt of its vertical axis
    height_mm: float  # height above the world's origin


# Values measured with mujoco 3.3.0, and tolerances: at most a third of the difference to 3.4.
SETTLED: dict[AssetKind, tuple[Settling, Settling]] = {
    "full": (Settling(14.60, 15.95, 934.40), Settling(5.0, 4.0, 2.0)),
    "proxy": (Settling(0.0, 0.0, 934.28), Settling(1.0, 1.0, 0.15)),
}
FLOOR_BRIGHTNESS: dict[AssetKind, float] = {"full": 179.2, "proxy": 179.7}  # grey levels of 255, mujoco 3.3.0
BRIGHTNESS_TOLERANCE = 15.0  # renderers differ by less, mujoco 3.3.3 by 57


def measure_settling(assets: str, *, states: Sequence[int] = SETTLE_STATES) -> list[Settling]:
    """Let Spatial task 5 settle from stored states; physics only, nothing is drawn.

    Args:
        assets: as for `resolve_assets`.
        states: indices of standard initial states.

    Returns:
        The settled pose of the bowl on the ramekin, by state.

    Raises:
        SimulatorError: the simulator cannot be used.
    """
    task = libero_task(*SETTLE_TASK)
    stored = read_states(task_files(task).standard_states)
    simulation = build_simulation(task, resolve_assets(assets))
    try:
        return [_settle(simulation, stored[index]) for index in states]
    finally:
        simulation.close()


def _settle(simulation: Simulation, state: Any) -> Settling:  # noqa: ANN401
    simulation.reset(0)
    simulation.set_state(state)
    start, _ = _pose(simulation)
    for _ in range(SETTLE_STEPS):
        simulation.step(SETTLE_ACTION)
    position, (_, x, y, _) = _pose(simulation)
    drift = float(np.linalg.norm(position[:2] - start[:2]))
    cosine = float(np.clip(1.0 - 2.0 * (x * x + y * y), -1.0, 1.0))  # cosine between the body's z axis and the world's
    return Settling(1000.0 * drift, float(np.degrees(np.arccos(cosine))), 1000.0 * float(position[2]))


def _pose(simulation: Simulation) -> tuple[Any, Any]:
    """Return position (3,) in metres and quaternion (4,) w x y z of the bowl."""
    sim = simulation.env.sim
    body = sim.model.body_name2id(BOWL)
    return np.array(sim.data.body_xpos[body]), np.array(sim.data.body_xquat[body])


def is_settled(measured: Settling, kind: AssetKind) -> bool:
    """Return whether a bowl rests as it does with the pinned MuJoCo."""
    expected, allowed = SETTLED[kind]
    return (
        abs(measured.drift_mm - expected.drift_mm) <= allowed.drift_mm
        and abs(measured.tilt_degrees - expected.tilt_degrees) <= allowed.tilt_degrees
        and abs(measured.height_mm - expected.height_mm) <= allowed.height_mm
    )


def measure_floor_brightness(assets: str) -> float:
    """Measure the mean grey level, of 255, of a patch of floor in the first frame of Object task 0.

    Raises:
        SimulatorError: the simulator cannot be used.
    """
    env = LiberoEnv(*FLOOR_TASK, assets=assets, cameras=("agentview",), image_size=FLOOR_IMAGE_SIZE)
    try:
        return float(env.reset(0).frames[0, FLOOR_ROWS, FLOOR_COLUMNS].mean())
    finally:
        env.close()


def measure_marked_texture() -> int:
    """Measure the grey level at which a texture of grey 128, marked as sRGB, is drawn under its own light."""
    libraries = shim.load(gl="auto")
    with tempfile.TemporaryDirectory() as folder:
        texture = Path(folder, "grey.png")
        texture.write_bytes(marked_png(MARKED_GREY))
        model = libraries.mujoco.MjModel.from_xml_string(_MARKED_SCENE.format(texture=texture))
    data = libraries.mujoco.MjData(model)
    libraries.mujoco.mj_forward(model, data)
    cameras = Cameras(libraries, names=("above",), image_size=16)
    try:
        cameras.point_at(model, data)
        return int(cameras.frames()[0, 8, 8, 0])
    finally:
        cameras.close()


_MARKED_SCENE = """
<mujoco>
  <visual><headlight ambient="0 0 0" diffuse="0 0 0" specular="0 0 0"/></visual>
  <asset>
    <texture name="grey" type="2d" file="{texture}"/>
    <material name="grey" texture="grey" emission="1" specular="0" reflectance="0"/>
  </asset>
  <worldbody>
    <camera name="above" pos="0 0 1"/>
    <geom type="plane" size="2 2 1" material="grey" group="1"/>
  </worldbody>
</mujoco>
"""


def marked_png(grey: int, size: int = 8) -> bytes:
    """Return a PNG of one grey with the chunk that marks sRGB, as image editors write it."""
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes([grey]) * (3 * size)) * size
    chunks = ((b"IHDR", header), (b"sRGB", b"\0"), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def build_simulation(task: TaskInfo, assets: Assets) -> Simulation:
    """Build a task's physics, without cameras: reads and compiles every file that the task uses.

    Raises:
        SimulatorError: the simulator cannot be used.
    """
    libraries = shim.load(gl="auto")
    shim.use_assets(assets.folder)
    return Simulation(
        libraries,
        bddl=task_files(task).bddl,
        cameras=(),
        image_size=16,
        edit_xml=simplify_visuals if assets.kind == "proxy" else None,
    )
