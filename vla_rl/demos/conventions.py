"""Conventions in which data sets of one robot differ: gripper, no-ops, time, and the source of the prompt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vla_rl.demos.data_errors import DemosError

Gripper = Literal["signed", "binary"]
GRIPPERS: dict[str, str] = {"signed": "-1 open, +1 close", "binary": "0 close, 1 open"}
GIVE_GRIPPER = "--gripper signed or --gripper binary; to sft, demos.gripper=signed or demos.gripper=binary"
NO_OP_NORM = 1e-4  # regenerate_libero_dataset.py of moojink/openvla-oft
BINARY_TOLERANCE = 1e-3
MIN_MOTION = 1e-4  # rad; joints that move less within an episode do not determine the time
CLEARLY_NEARER = 0.2  # observations are 2 ms older than the state at the end of a control step of 50 ms


def task_of_file(path: Path) -> str:
    """Return the name of a task from its file name: `KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5` without `_demo`."""
    return path.name.split(".")[0].removesuffix("_demo")


def instruction_of_task(task: str) -> str:
    """Return the prompt: the words of the name after a token like SCENE3, lower case.

    Published policies were trained on it, not on the sentence in the file, which can differ.
    """
    words = task.split("_")
    scenes = [place for place, word in enumerate(words) if re.fullmatch(r"SCENE\d+", word)]
    return " ".join(words[scenes[-1] + 1 :] if scenes else words).lower()


def gripper_of(commands: NDArray[np.float64]) -> Gripper | None:
    """Return the convention of some gripper commands; None if they fit both (always 1).

    Negative values occur only in the environment's -1 ... +1; without any, a 0 indicates 0 and 1.
    """
    if commands.min() < -BINARY_TOLERANCE:
        return "signed"
    return "binary" if commands.min() < 1.0 - BINARY_TOLERANCE else None


def to_environment(actions: NDArray[np.float64], gripper: Gripper, place: tuple[str, str]) -> NDArray[np.float32]:
    """Convert actions (T, 7) to the environment's gripper commands: -1 open, +1 close.

    Raises:
        DemosError: the commands have another convention.
    """
    commands = actions[:, -1]
    converted = actions.astype(np.float32)
    if gripper == "signed":
        if np.abs(commands).max() > 1.0 + BINARY_TOLERANCE or gripper_of(commands) == "binary":
            raise _mixed(commands, gripper, place)
        return converted
    steps = commands.round()
    if np.abs(commands - steps).max() > BINARY_TOLERANCE or not set(steps.tolist()) <= {0.0, 1.0}:
        raise _mixed(commands, gripper, place)
    converted[:, -1] = 1.0 - 2.0 * steps
    return converted


def _mixed(commands: NDArray[np.float64], gripper: Gripper, place: tuple[str, str]) -> DemosError:
    return DemosError(
        *place,
        f"the gripper commands are not '{gripper}' ({GRIPPERS[gripper]}), as the first episodes or the option say",
        found=f"values from {commands.min():g} to {commands.max():g}",
        allowed="one convention in the whole dataset: -1 to +1 with -1 open, or exactly 0 and 1 with 1 open",
        fix=f"remove the episodes from another source, or give the convention: {GIVE_GRIPPER}",
    )


def kept_rows(actions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which actions (T, 7) are not no-ops, by the rule of OpenVLA-OFT's data.

    A no-op moves less than 1e-4 (norm of the first six) and keeps the gripper command of the last kept action; before
    the first kept action the gripper is ignored. Source: regenerate_libero_dataset.py of moojink/openvla-oft.
    """
    still = np.linalg.norm(actions[:, :-1], axis=1) < NO_OP_NORM
    kept = np.zeros(len(actions), bool)
    last: float | None = None
    for row, gripper in enumerate(actions[:, -1].tolist()):
        kept[row] = not (still[row] and (last is None or gripper == last))
        if kept[row]:
            last = gripper
    return kept


def measured_lag(states: NDArray[Any], joints: NDArray[Any]) -> int | None:
    """Return whether pictures were taken before (0) or after (1) the action of their row; None if undetermined.

    `states` (T, 1 + positions + velocities) is the simulator's state before the action of its row, and begins with the
    time and the 7 joints; `joints` (T, 7) were observed together with the pictures.
    """
    if states.ndim != 2 or len(states) < 4 or states.shape[1] < 8 or joints.shape != (len(states), 7):
        return None
    before = np.median(np.abs(states[1:-1, 1:8] - joints[1:-1]).max(axis=1))
    after = np.median(np.abs(states[2:, 1:8] - joints[1:-1]).max(axis=1))
    if max(before, after) < MIN_MOTION:
        return None
    if before < CLEARLY_NEARER * after:
        return 0
    return 1 if after < CLEARLY_NEARER * before else None
