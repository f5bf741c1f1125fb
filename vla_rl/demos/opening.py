"""Detection of a path's format, and its episodes in one convention."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from vla_rl.demos.conventions import GIVE_GRIPPER, GRIPPERS, Gripper, gripper_of, kept_rows, to_environment
from vla_rl.demos.data_errors import DemosError
from vla_rl.demos.episode import Episode, Reader, StoredEpisode
from vla_rl.demos.hdf5 import SUFFIXES, Hdf5Reader
from vla_rl.demos.lerobot import LeRobotReader
from vla_rl.demos.lerobot_metadata import INFO
from vla_rl.demos.rlds import RldsReader
from vla_rl.errors import UserError

FORMATS = (
    "LIBERO's HDF5 files (a file, or the folder of a suite), an RLDS data set (the folder with *.tfrecord-* files), "
    "a LeRobot data set v2.0 to v3.0 (the folder that holds meta/info.json)"
)

RECORDS = re.compile(r"\.tfrecord(-\d+-of-\d+)?$")  # other endings are of downloads that have not ended


class Demos:
    """Episodes of a data set, one at a time and in numerical order; memory holds only the current one.

    It can be iterated repeatedly and indexed: `len(demos)`, `demos[3]`.
    """

    def __init__(
        self,
        path: Path,
        reader: Reader,
        *,
        gripper: Gripper | Literal["auto"],
        rotated: bool | Literal["auto"],
        drop_no_ops: bool,
    ) -> None:
        self.path = path
        self.reader = reader
        self.format = reader.format
        self.rotated = reader.rotated if rotated == "auto" else rotated
        self._gripper = gripper
        self._image_size: tuple[int, int] | None = None
        self.drops_no_ops = drop_no_ops

    @property
    def gripper(self) -> Gripper:
        """Return the gripper convention of the file: as declared, or found in the first episodes that determine it.

        Raises:
            DemosError: neither the data nor the format determines it.
        """
        if self._gripper == "auto":
            found = (gripper_of(stored.actions[:, -1]) for stored in self.reader)
            documented = self.reader.documented_gripper
            settled = next((one for one in found if one is not None), None)
            if settled is None:
                settled = "signed" if documented == "signed" else None
            if settled is None:
                raise DemosError(
                    self.path,
                    "action",
                    "the gripper convention cannot be detected: every command is 1",
                    allowed="; ".join(f"{name}: {meaning}" for name, meaning in GRIPPERS.items()),
                    fix=f"give it: {GIVE_GRIPPER}",
                )
            self._gripper = settled
        return self._gripper

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Episode:
        return self.convert(self.reader.read(range(len(self))[index]))

    def __iter__(self) -> Iterator[Episode]:
        return (self[index] for index in range(len(self)))

    def convert(self, stored: StoredEpisode) -> Episode:
        """Convert an episode to rows that belong together, in the environment's units.

        Raises:
            DemosError: the gripper has another convention, pictures have another size than before, or no row is left.
        """
        self._check_size(stored)
        if not stored.instruction:
            raise DemosError(*stored.place, "has no instruction", fix="give the task a text, or take this episode out")
        lag = stored.lag
        actions = to_environment(stored.actions, self.gripper, stored.place)
        used = np.arange(len(actions)) >= lag  # no picture was taken before the first `lag` actions
        if self.drops_no_ops:
            used &= kept_rows(stored.actions)
        of_actions = np.flatnonzero(used)
        if not len(of_actions):
            raise DemosError(*stored.place, "no row is left", found=f"{len(actions)} rows", fix="take this episode out")
        rows = of_actions - lag
        return Episode(
            instruction=stored.instruction,
            state=stored.state[rows],
            actions=actions[of_actions],
            task=stored.task,
            number=stored.number,
            rows=rows,
            stored=stored,
            turned=not self.rotated,
        )

    def _check_size(self, stored: StoredEpisode) -> None:
        self._image_size = self._image_size or stored.image_size
        if stored.image_size != self._image_size:
            raise DemosError(
                *stored.place,
                "all pictures of a data set have one size",
                found=f"{stored.image_size[0]}x{stored.image_size[1]} pixels",
                allowed=f"{self._image_size[0]}x{self._image_size[1]}, as those before",
                fix="read the two kinds separately",
            )


def open_demos(
    path: str | Path,
    *,
    gripper: str = "auto",
    rotated: bool | Literal["auto"] = "auto",
    drop_no_ops: bool = False,
) -> Demos:
    """Open a data set of demonstrations for LIBERO's robot, whatever its format.

    Args:
        path: A file or a folder; `meta/info.json` of a LeRobot data set stands for its folder.
        gripper: Meaning of the file's gripper commands: `signed` (-1 open, +1 close), `binary` (0 close, 1 open),
            or `auto`, from the values.
        rotated: The pictures in the file are already rotated by 180 degrees; `auto` is what the format prescribes.
            Numbers cannot tell: look at `vla-rl demos inspect PATH --out sheet.png`.
        drop_no_ops: Drop rows whose action does nothing, by the rule of `kept_rows`.

    Returns:
        Its episodes.

    Raises:
        UserError: the path holds no such data set, or a broken one, or an option does not exist; later broken data
            raise it when the iteration reaches them.
    """
    if gripper not in ("auto", *GRIPPERS):
        raise UserError(f"gripper: {gripper!r} does not exist; choose from auto, {', '.join(GRIPPERS)}")
    if rotated not in ("auto", True, False):
        raise UserError(f"rotated: {rotated!r} does not exist; choose from 'auto', True, False")
    where = Path(path).expanduser()
    if where.parts[-2:] == INFO.parts:  # the data set is the whole folder
        where = where.parents[1]
    convention: Gripper | Literal["auto"] = (
        "signed" if gripper == "signed" else "binary" if gripper == "binary" else "auto"
    )
    return Demos(where, find_reader(where), gripper=convention, rotated=rotated, drop_no_ops=drop_no_ops)


def find_reader(path: Path) -> Reader:
    """Return the reader of the format that the path holds.

    Raises:
        DemosError: there is nothing, or nothing readable.
    """
    if not path.exists():
        raise DemosError(path, "", "does not exist", allowed=FORMATS)
    if path.is_file():
        if path.suffix in SUFFIXES:
            return Hdf5Reader([path])
        if RECORDS.search(path.name):
            return RldsReader([path])
        raise DemosError(
            path, "", "unknown format", found=f"a file {path.suffix or 'without a suffix'}", allowed=FORMATS
        )
    if (path / INFO).is_file():
        return LeRobotReader(path)
    if files := sorted((it for it in _visible(path) if it.suffix in SUFFIXES and it.is_file()), key=_natural):
        return Hdf5Reader(files)
    if records := _records(path):
        return RldsReader(records)
    inner = [folder for folder in _folders(path) if _is_dataset(folder) or any(map(_is_dataset, _folders(folder)))]
    if len(inner) == 1:  # the version of an RLDS data set, or the only one of a collection
        return find_reader(inner[0])
    names = sorted(it.name for it in path.iterdir())
    raise DemosError(
        path,
        "",
        "holds several data sets" if inner else "unknown format",
        found=", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "an empty folder",
        allowed=FORMATS,
        fix=f"name one of them: {inner[0]}" if inner else "",
    )


def _visible(folder: Path) -> list[Path]:
    """Return what a folder holds, without hidden files: macOS writes a `._NAME` beside each NAME."""
    try:
        return [it for it in folder.iterdir() if not it.name.startswith(".")]
    except PermissionError:
        return []


def _folders(path: Path) -> list[Path]:
    return sorted((it for it in _visible(path) if it.is_dir()), key=_natural)


def _records(folder: Path) -> list[Path]:
    files = sorted((it for it in _visible(folder) if RECORDS.search(it.name) and it.is_file()), key=_natural)
    return [file for file in files if "-train." in file.name] or files


def _is_dataset(folder: Path) -> bool:
    if (folder / INFO).is_file() or _records(folder):
        return True
    return any(it.suffix in SUFFIXES for it in _visible(folder))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a sort key in which numbers in names are ordered by value."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
