"""Episodes of LeRobot data sets, v2.0, v2.1 and v3.0: numbers in parquet, pictures in parquet or videos.

Pictures are already rotated by 180 degrees. `fps` is a label (10 or 20, while LIBERO is controlled at 20 Hz): the order
of rows counts, and seconds only find frames in videos. Source: huggingface/lerobot, src/lerobot/datasets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.demos.checks import check_episode
from vla_rl.demos.data_errors import DemosError
from vla_rl.demos.episode import Rows, StoredEpisode
from vla_rl.demos.lerobot_metadata import LeRobotMetadata, Placement
from vla_rl.demos.parquet import read_cells, read_table
from vla_rl.demos.pictures import PictureError, decode_picture
from vla_rl.demos.videos import read_video
from vla_rl.types import UInt8Array


class LeRobotReader:
    """Reader of a data set's episodes in the order of their numbers."""

    rotated = True
    documented_gripper: str | None = None  # both are in use

    def __init__(self, root: Path) -> None:
        """Read the metadata.

        Raises:
            DemosError: the metadata is missing, broken, of an unknown version, or names other features.
        """
        self._root = root
        self._metadata = metadata = LeRobotMetadata(root)
        self.format, self.fps, self.features = metadata.format, metadata.fps, metadata.features

    @property
    def paths(self) -> list[Path]:
        """Return the files that it reads; pictures may lie in files of their own, below images/."""
        described = (file for part in ("meta", "images") for file in (self._root / part).rglob("*") if file.is_file())
        used = ({at.file, *(file for file, _ in at.videos.values())} for at in self._metadata.placements)
        return sorted(set(described).union(*used))

    def __len__(self) -> int:
        return len(self._metadata.placements)

    def __iter__(self) -> Iterator[StoredEpisode]:
        return (self.read(index) for index in range(len(self)))

    def read(self, index: int) -> StoredEpisode:
        """Read the numbers of an episode."""
        at, features = self._metadata.placements[index], self.features
        place = (str(at.file), f"episode {at.episode}")
        names = [features.action, *features.state, "episode_index", "task_index"]
        table = read_table(at.file, names, at.start, at.stop, optional=["frame_index"])
        actions, state = table[features.action], [table[key] for key in features.state]
        if any(part.ndim != 2 for part in state):
            raise DemosError(*place, "wrong shape of the state", found=[part.shape for part in state])
        joined = np.concatenate(state, axis=1)
        check_episode(actions, joined, at.stop - at.start, place)
        if set(table["episode_index"].tolist()) != {at.episode}:
            raise DemosError(
                *place,
                f"rows {at.start} to {at.stop - 1} must be of this episode",
                found=f"episode_index {sorted(set(table['episode_index'].tolist()))[:5]}",
                fix="the meta data do not fit the data: fetch the data set again",
            )
        _check_order(table.get("frame_index"), place)
        instruction = self._instruction(set(table["task_index"].tolist()), place)
        return StoredEpisode(
            place=place,
            task=instruction.replace(" ", "_"),
            number=at.episode,
            instruction=instruction,
            actions=actions.astype(np.float64),
            state=joined.astype(np.float32),
            image_size=self._metadata.image_size,
            lag=0,
            read_pictures=partial(self._read_pictures, at),
            read_extras=partial(self._read_extras, at),
        )

    def _instruction(self, tasks: set[int], place: tuple[str, str]) -> str:
        all_tasks = self._metadata.tasks
        known = [all_tasks[task] for task in tasks if task in all_tasks]
        if len(tasks) != 1 or not known:
            raise DemosError(
                *place, "an episode has one task of meta/tasks", found=f"task_index {sorted(tasks)}",
                allowed=f"0 to {len(all_tasks) - 1}",
            )  # fmt: skip
        return known[0].strip().lower()

    def _read_pictures(self, at: Placement, camera: str, rows: Rows) -> UInt8Array:
        key = self.features.cameras[camera]
        if self.features.is_video[camera]:
            file, begin = at.videos[camera]
            pictures = read_video(file, begin=begin, fps=self.fps, rows=rows.tolist())
        else:
            file = at.file
            first, last = int(rows[0]), int(rows[-1])
            wanted = set(rows.tolist())
            cells = read_cells(file, key, at.start + first, at.start + last + 1)
            pictures = np.stack(
                [self._decode(cell, at, camera, row) for row, cell in enumerate(cells, first) if row in wanted]
            )
        if pictures.shape[1:] != (*self._metadata.image_size, 3):
            raise DemosError(
                file, f"episode {at.episode}, {key}", "pictures must have the size of meta/info.json",
                found=pictures.shape[1:], allowed=str((*self._metadata.image_size, 3)),
            )  # fmt: skip
        return pictures

    def _decode(self, cell: object, at: Placement, camera: str, row: int) -> UInt8Array:
        key = f"episode {at.episode}, row {row}, {self.features.cameras[camera]}"
        try:
            if isinstance(cell, dict) and cell.get("bytes"):
                return decode_picture(cell["bytes"])
            if isinstance(cell, dict) and cell.get("path"):
                return decode_picture((self._root / str(cell["path"])).read_bytes())
        except (PictureError, OSError) as error:
            raise DemosError(at.file, key, "cannot be read as a picture", found=str(error)) from error
        raise DemosError(at.file, key, "holds no picture", found=type(cell).__name__, allowed="bytes or a path")

    def _read_extras(self, at: Placement) -> Mapping[str, NDArray[Any]]:
        if self.features.joints is None:
            return {}
        joints = read_table(at.file, [self.features.joints], at.start, at.stop)[self.features.joints]
        return {"obs/joint_states": joints.astype(np.float64)}


def _check_order(frames: NDArray[Any] | None, place: tuple[str, str]) -> None:
    """Check that rows follow each other in time: frames of videos and chunks of actions are found by their order."""
    if frames is not None and not np.array_equal(frames, np.arange(len(frames))):
        wrong = int(np.flatnonzero(frames != np.arange(len(frames)))[0])
        raise DemosError(
            *place,
            "rows must be in the order of frame_index, from 0",
            found=f"frame_index {frames[wrong]} in row {wrong}",
            fix="sort the rows of the file by index, or fetch the data set again",
        )
