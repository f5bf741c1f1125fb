"""The kinds of perturbations, and how they are named: `camera-orbit:3`, `light:1-5`, `all`."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import get_args

import numpy as np

from vla_rl.envs.libero.perturbations.action_delay import ActionDelay
from vla_rl.envs.libero.perturbations.action_noise import ActionNoise
from vla_rl.envs.libero.perturbations.camera_distance import CameraDistance
from vla_rl.envs.libero.perturbations.camera_orbit import CameraOrbit
from vla_rl.envs.libero.perturbations.camera_tilt import CameraTilt
from vla_rl.envs.libero.perturbations.compression import Compression
from vla_rl.envs.libero.perturbations.distractors import Distractors
from vla_rl.envs.libero.perturbations.dropped_frames import DroppedFrames
from vla_rl.envs.libero.perturbations.field_of_view import FieldOfView
from vla_rl.envs.libero.perturbations.fog import Fog
from vla_rl.envs.libero.perturbations.gaussian_blur import GaussianBlur
from vla_rl.envs.libero.perturbations.glass_blur import GlassBlur
from vla_rl.envs.libero.perturbations.kind import LEVELS, Effect, Group, Kind
from vla_rl.envs.libero.perturbations.light_colour import LightColour
from vla_rl.envs.libero.perturbations.light_position import LightPosition
from vla_rl.envs.libero.perturbations.light_strength import LightStrength
from vla_rl.envs.libero.perturbations.motion_blur import MotionBlur
from vla_rl.envs.libero.perturbations.occlusion import Occlusion
from vla_rl.envs.libero.perturbations.paraphrase import Paraphrase
from vla_rl.envs.libero.perturbations.pixel_noise import PixelNoise
from vla_rl.envs.libero.perturbations.placement import Placement
from vla_rl.envs.libero.perturbations.robot_pose import RobotPose
from vla_rl.envs.libero.perturbations.shadows import Shadows
from vla_rl.envs.libero.perturbations.texture_floor import TextureFloor
from vla_rl.envs.libero.perturbations.texture_table import TextureTable
from vla_rl.envs.libero.perturbations.texture_walls import TextureWalls
from vla_rl.envs.libero.perturbations.wrong_instruction import WrongInstruction
from vla_rl.envs.libero.perturbations.zoom_blur import ZoomBlur
from vla_rl.types import TaskInfo

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        *(CameraOrbit(), CameraDistance(), CameraTilt(), FieldOfView()),
        *(LightPosition(), LightColour(), LightStrength(), Shadows()),
        *(TextureTable(), TextureFloor(), TextureWalls()),
        *(PixelNoise(), MotionBlur(), GaussianBlur(), ZoomBlur(), GlassBlur(), Fog()),
        *(Compression(), Occlusion(), DroppedFrames()),
        RobotPose(),
        *(Placement(), Distractors()),
        *(Paraphrase(), WrongInstruction()),
        *(ActionNoise(), ActionDelay()),
    )
}
GROUPS: tuple[str, ...] = get_args(Group)
ALL = "all"


@dataclass(frozen=True, slots=True, order=True)
class Perturbation:
    """One kind at one level. Satisfies `kind.Change`."""

    kind: str
    level: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.level}"

    def effect(self, task: TaskInfo, init_state: int, *, seed: int) -> Effect:
        """Return what it does to one episode, which follows from task, initial state, seed and level alone."""
        return KINDS[self.kind].draw(self.level, task, self.generator(task, init_state, seed=seed))

    def generator(
        self, task: TaskInfo, init_state: int, *, seed: int, moment: tuple[int, ...] = ()
    ) -> np.random.Generator:
        """Return the generator of an episode's draws, or of those of one `moment` in it."""
        names = (zlib.crc32(name.encode()) for name in (self.kind, task.suite))
        return np.random.default_rng([*names, self.level, task.task_id, init_state, seed, *moment])


def parse_perturbations(text: str) -> list[Perturbation]:
    """Parse a comma list like `camera:3,light:1-5,fog`: kinds, groups of kinds or `all`, each with its levels.

    Returns:
        Every kind and level once, in the order of `KINDS`.

    Raises:
        ValueError: names every entry that is not one, and what is allowed.
    """
    found: set[Perturbation] = set()
    faults = []
    for entry in text.split(","):
        name, colon, levels = entry.strip().partition(":")
        kinds = [kind for kind in KINDS.values() if name in (kind.name, kind.group, ALL)]
        chosen = _levels(levels) if colon else list(LEVELS)
        if not kinds:
            faults.append(f"{entry.strip()!r} names no kind")
        elif not chosen:
            faults.append(f"{entry.strip()!r} has other levels than 1 to {LEVELS[-1]}")
        found |= {Perturbation(kind.name, level) for kind in kinds for level in chosen}
    if faults:
        raise ValueError(
            f"{'; '.join(faults)}. Allowed are a kind, a group or {ALL}, with a level or levels, like camera:3 or "
            f"light:1-5. Groups: {', '.join(GROUPS)}. Kinds: {', '.join(KINDS)}"
        )
    order = list(KINDS)
    return sorted(found, key=lambda one: (order.index(one.kind), one.level))


def _levels(text: str) -> list[int]:
    """Return the levels of `3` or `1-5`; none if there is one that does not exist."""
    first, dash, last = text.partition("-")
    allowed = {str(level) for level in LEVELS}
    if first not in allowed or (dash and last not in allowed):
        return []
    return list(range(int(first), int(last or first) + 1))
