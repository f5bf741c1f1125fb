"""HDF5 files of LIBERO, raw and regenerated ("no_noops"): one file per task, `data/demo_0`, `data/demo_1`, ...

In raw files (scripts/create_dataset.py of LIBERO) a picture was taken after the action of its row, in regenerated ones
(regenerate_libero_dataset.py of moojink/openvla-oft) before it. Both store it upside down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.demos.attributes import is_raw
from vla_rl.demos.checks import check_episode
from vla_rl.demos.conventions import instruction_of_task, measured_lag, task_of_file
from vla_rl.demos.data_errors import DemosError
from vla_rl.demos.episode import Rows, StoredEpisode
from vla_rl.demos.h5_files import READABLE, find, find_group, open_h5, read_array
from vla_rl.types import UInt8Array

if TYPE_CHECKING:
    from vla_rl.demos.h5_files import Group

SUFFIXES = (".hdf5", ".h5")
PICTURES = {"agentview": "obs/agentview_rgb", "wrist": "obs/eye_in_hand_rgb"}
EXECUTED = "executed_actions"  # (T, 7) what was done, where it is not what a policy should learn: under noise
RESET = "vla_rl_reset"  # attribute of a demonstration: JSON of how its first state is made again
RAW, REGENERATED = "libero_hdf5_raw", "libero_hdf5_regenerated"


@dataclass(frozen=True, slots=True)
class TaskFile:
    """File of a task, and what was found out about it."""

    path: Path
    numbers: tuple[int, ...]  # of the demonstrations, ascending
    is_raw: bool
    lag: int
    sentence: str  # the instruction inside the file, which is not the prompt; empty if there is none


class Hdf5Reader:
    """Reader of a file, or of a folder of files by name; demonstrations by number."""

    rotated = False
    documented_gripper: str | None = "signed"

    def __init__(self, files: list[Path]) -> None:
        """Read the description of the files, but no episode.

        Raises:
            DemosError: a file is broken or of another layout, or raw and regenerated files are mixed.
        """
        self.paths = files
        self.files = [_examine(file) for file in files]
        self._places = [(file, number) for file in self.files for number in file.numbers]
        first = self.files[0]
        for file in self.files[1:]:
            if (file.is_raw, file.lag) != (first.is_raw, first.lag):
                raise DemosError(
                    file.path,
                    "",
                    "all files of a dataset have one layout",
                    found=f"{_layout(file)}, but {first.path.name} is {_layout(first)}",
                    fix="read the two kinds separately, each from its own folder",
                )
        self.format = RAW if first.is_raw else REGENERATED

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[StoredEpisode]:
        return (self.read(index) for index in range(len(self)))

    def read(self, index: int) -> StoredEpisode:
        """Read the numbers of an episode."""
        file, number = self._places[index]
        name = f"data/demo_{number}"
        place = (str(file.path), name)
        with open_h5(file.path) as handle:
            demo = find_group(handle, name)
            actions = read_array(demo, "actions")
            state = _state(demo)
            shapes = {camera: _picture_shape(demo, key) for camera, key in PICTURES.items()}
        rows = shapes["agentview"][0]
        for camera, shape in shapes.items():
            if shape != shapes["agentview"]:
                key = f"{name}/{PICTURES[camera]}"
                raise DemosError(file.path, key, "both cameras have one size and number of pictures", found=shapes)
        check_episode(actions, state, rows, place)
        task = task_of_file(file.path)
        return StoredEpisode(
            place=place,
            task=task,
            number=number,
            instruction=instruction_of_task(task),
            actions=actions.astype(np.float64),
            state=state.astype(np.float32),
            image_size=(shapes["agentview"][1], shapes["agentview"][2]),
            lag=file.lag,
            read_pictures=partial(_read_pictures, file.path, name),
            read_extras=partial(_read_extras, file.path, name, rows, file.lag),
        )


def _layout(file: TaskFile) -> str:
    return f"{'raw' if file.is_raw else 'regenerated'}, pictures {'after' if file.lag else 'before'} their actions"


def _examine(path: Path) -> TaskFile:
    with open_h5(path) as handle:
        data = find_group(handle, "data") if "data" in handle else None
        numbers = sorted(int(name[5:]) for name in data or () if re.fullmatch(r"demo_\d+", name))
        if not numbers:
            raise DemosError(
                path,
                "data",
                "holds no demonstrations",
                found=", ".join(sorted(data if data is not None else handle)) or "nothing",
                allowed=f"data/demo_0, data/demo_1, ...: {READABLE}",
                fix="other layouts cannot be read",
            )
        demo = find_group(data, f"demo_{numbers[0]}")
        raw = is_raw(data, demo)
        lag = int(raw)
        if "states" in demo and "obs/joint_states" in demo:
            measured = measured_lag(read_array(demo, "states"), read_array(demo, "obs/joint_states"))
            lag = lag if measured is None else measured
        return TaskFile(path, tuple(numbers), raw, lag, _sentence(data))


def _sentence(data: Group) -> str:
    try:
        information = json.loads(data.attrs.get("problem_info", "{}"))
    except (ValueError, TypeError):
        return ""
    sentence = information.get("language_instruction", "") if isinstance(information, dict) else ""
    return " ".join(map(str, sentence)) if isinstance(sentence, list) else str(sentence)


def _state(demo: Group) -> NDArray[Any]:
    """Return position and axis-angle, then both fingers."""
    whole = demo.get("obs/ee_states") is not None or demo.get("obs/ee_pos") is None
    poses = ["obs/ee_states"] if whole else ["obs/ee_pos", "obs/ee_ori"]
    parts = [read_array(demo, key) for key in (*poses, "obs/gripper_states")]
    if any(part.ndim != 2 or len(part) != len(parts[0]) for part in parts):
        shapes = ", ".join(str(part.shape) for part in parts)
        raise DemosError(
            demo.file.filename,
            f"{demo.name}/obs/ee_states, obs/gripper_states".lstrip("/"),
            "wrong shape",
            found=shapes,
            allowed="(T, 6) and (T, 2)",
        )
    return np.concatenate(parts, axis=1)


def _picture_shape(demo: Group, key: str) -> tuple[int, int, int]:
    dataset = find(demo, key)
    if dataset.ndim != 4 or dataset.shape[-1] != 3 or dataset.dtype != np.uint8:
        raise DemosError(
            demo.file.filename,
            f"{demo.name}/{key}".lstrip("/"),
            "wrong shape or type",
            found=f"{dataset.shape} {dataset.dtype}",
            allowed="(T, H, W, 3) uint8",
        )
    rows, height, width, _ = dataset.shape
    return rows, height, width


def _read_pictures(file: Path, demo: str, camera: str, rows: Rows) -> UInt8Array:
    with open_h5(file) as handle:
        return read_array(handle[demo], PICTURES[camera], rows)


def _read_extras(file: Path, demo: str, rows: int, lag: int) -> Mapping[str, NDArray[Any]]:
    """Return the values that other readers of the layout expect, each row at the time of a picture.

    Raises:
        DemosError: they have not one row for each picture.
    """
    extras = {}
    with open_h5(file) as handle:
        group = handle[demo]
        for key in ("obs/joint_states", "states", "robot_states", EXECUTED):
            if key in group:
                values = read_array(group, key)
                if values.shape[:1] != (rows,):
                    raise DemosError(
                        file,
                        f"{demo}/{key}",
                        "wrong shape",
                        found=values.shape,
                        allowed=f"one row for each of {rows} pictures",
                        fix="remove this data set from the file, or fetch the file again",
                    )
                # A state or an action belongs to the action of its row, everything else to its picture.
                is_of_action = key in ("states", EXECUTED)
                extras[key] = np.concatenate([values[lag:], values[len(values) - lag :]]) if is_of_action else values
    return extras
