"""Names of LIBERO-plus's tasks, which say what was changed; cameras, poses and noise are in the name alone.

A name is that of LIBERO's task, then what has a BDDL file of its own (`_language_3`), then
`_view_H_V_S_R_E_initstate_K`, then `_noise_N`. Every part but the first may be absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vla_rl.envs.libero.perturbations.named import Noise, Variation, View

NUM_POSES, NUM_NOISES = 500, 50

_VIEW = re.compile(r"(.+)_view_(\d+)_(\d+)_(\d+)_(\d+)_(\d+)_initstate_(\d+)(?:_noise_(\d+))?")
_KINDS = (  # of variants with a BDDL file of their own: end of the name, category as LIBERO-plus's task list has it
    (re.compile(r"(.+)_language_\d+"), "Language Instructions"),
    (re.compile(r"(.+)_light_\d+"), "Light Conditions"),
    (re.compile(r"(.+)_(?:table|tb)_\d+"), "Background Textures"),
    (re.compile(r"(.+)_add_\d+"), "Objects Layout"),
    (re.compile(r"(.+?)(?:_moved)?_level\d+_sample\d+"), "Objects Layout"),
)
_CAMERA, _ROBOT, _NOISE = "Camera Viewpoints", "Robot Initial States", "Sensor Noise"
_OWN_STATES = re.compile(r".+_(?:add_\d+|level\d+_sample\d+)")
_FOREIGN = {  # variants that need more than definitions, by the end of the name
    re.compile(r".+_light_\d+"): "lights are in LIBERO-plus's own scene files",
    re.compile(r".+_(?:table|tb)_\d+"): "textures are in LIBERO-plus's own scene files",
    re.compile(r".+_add_\d+"): "added objects are LIBERO-plus's own",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """Name of a task, parsed."""

    base: str  # name of LIBERO's own task, as far as the name tells
    file: str  # stem of the BDDL file
    category: str  # as LIBERO-plus's task list has it; empty for a plain name
    own_states: bool  # whether its initial states are its own; else they are the base's
    foreign: str  # why it cannot be simulated with LIBERO alone; empty if it can
    change: Variation | None  # what is to be changed in the simulator

    @property
    def is_plus(self) -> bool:
        """Return whether the name is one of LIBERO-plus's variants."""
        return bool(self.category)


def parse_variant(name: str) -> Variant:
    """Parse the name of a task.

    Raises:
        ValueError: a number in the name is beyond LIBERO-plus's.
    """
    seen = _VIEW.fullmatch(name)
    file, change, category = (name, None, "") if seen is None else _viewed(seen)
    base = file
    for ending, of_file in _KINDS:
        if found := ending.fullmatch(file):
            base, category = found[1], of_file
            break
    return Variant(
        base=base,
        file=file,
        category=category,
        own_states=_OWN_STATES.fullmatch(file) is not None,
        foreign=next((reason for ending, reason in _FOREIGN.items() if ending.fullmatch(file)), ""),
        change=change,
    )


def _viewed(seen: re.Match[str]) -> tuple[str, Variation | None, str]:
    """Return the stem of the BDDL file, the change, and its category; none if all numbers are the nominal ones."""
    horizontal, vertical, scale, roll, tilt, pose = map(int, seen.groups()[1:7])
    noise = int(seen[8] or 0)
    if pose > NUM_POSES or noise > NUM_NOISES or scale == 0 or max(horizontal, vertical, roll, tilt) >= 360:
        raise ValueError(
            f"angles must be below 360, the scale above 0, the pose at most {NUM_POSES} and the noise at most "
            f"{NUM_NOISES}"
        )
    angles = [angle - 360 if angle > 180 else angle for angle in (horizontal, vertical, roll, tilt)]
    view = View(angles[0], angles[1], scale / 100, angles[2], angles[3])
    change = Variation(
        view=None if view == View() else view, pose=pose or None, noise=None if noise == 0 else Noise(noise)
    )
    if change == Variation():
        return seen[1], None, ""
    category = _CAMERA if change.view is not None else _ROBOT if change.pose is not None else _NOISE
    return seen[1], change, category
