"""Episodes of demonstrations: as stored in a file, and as used to train a policy.

Shapes: T rows of an episode, H and W pixels of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_rl.types import FloatArray, UInt8Array

CAMERAS = ("agentview", "wrist")
ACTION_DIM = 7  # position 3, rotation 3, gripper
STATE_DIM = 8  # position 3, axis-angle 3, fingers 2

Rows = NDArray[np.int64]
ReadPictures = Callable[[str, Rows], UInt8Array]  # camera and rows in ascending order to (rows, H, W, 3), as stored


@dataclass(frozen=True, slots=True)
class StoredEpisode:
    """Episode in the conventions of its file: nothing is rotated, shifted or converted."""

    place: tuple[str, str]  # the file and the part of it, for messages
    task: str  # LIBERO's name of the task: the stem of its file, with underscores
    number: int  # the demonstration's own number, if the format has one
    instruction: str  # lower case
    actions: NDArray[np.float64]  # (T, 7)
    state: FloatArray  # (T, 8)
    image_size: tuple[int, int]  # H, W
    lag: int  # a picture in row j was taken before action j + lag: 0 if they are aligned, 1 in raw LIBERO files
    read_pictures: ReadPictures = field(repr=False, compare=False)
    read_extras: Callable[[], Mapping[str, NDArray[Any]]] = field(
        repr=False, compare=False
    )  # (T, ...) per key, aligned


class Reader(Protocol):
    """Data set on disk. Only requested parts are read."""

    format: str
    rotated: bool  # True: by the format's own rules the stored pictures are already rotated
    documented_gripper: str | None  # the convention that the format prescribes, if it does

    @property
    def paths(self) -> Sequence[Path]:
        """Return the files that it reads."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> StoredEpisode:
        """Read the numbers of an episode; its pictures are read when they are asked for.

        Raises:
            DemosError: the data are broken or violate the format.
        """
        ...

    def __iter__(self) -> Iterator[StoredEpisode]: ...


@dataclass(frozen=True)
class Episode:
    """Demonstration as a policy is trained on it. Row t of frames, state and actions belong together.

    Pictures are read when `frames` or `frame` is used; `frames` keeps them as long as the episode is kept.
    """

    instruction: str  # lower case
    state: FloatArray  # (T, 8) float32: position 3 in m, axis-angle 3 in rad, fingers 2 in m
    actions: FloatArray  # (T, 7) float32 in the environment's units; gripper -1 open, +1 close
    task: str
    number: int
    rows: Rows = field(repr=False)  # (T,) rows of the stored pictures
    stored: StoredEpisode = field(repr=False)
    turned: bool = field(repr=False)  # True: the stored pictures must be rotated by 180 degrees

    def __len__(self) -> int:
        return len(self.actions)

    @cached_property
    def frames(self) -> dict[str, UInt8Array]:
        """Return (T, H, W, 3) uint8 for each of `CAMERAS`, rotated as the policy sees them.

        Raises:
            DemosError: a picture cannot be read.
        """
        return {camera: self._pictures(camera, self.rows) for camera in CAMERAS}

    def frame(self, camera: str, row: int) -> UInt8Array:
        """Return one picture, (H, W, 3) uint8; a negative `row` counts from the end.

        Raises:
            DemosError: the picture cannot be read.
        """
        picture: UInt8Array = self._pictures(camera, self.rows[[row]])[0]
        return picture

    def pictures(self, camera: str, rows: Sequence[int]) -> UInt8Array:
        """Return some pictures, (len(rows), H, W, 3) uint8; `rows` ascend.

        Raises:
            DemosError: a picture cannot be read.
        """
        return self._pictures(camera, self.rows[list(rows)])

    def _pictures(self, camera: str, rows: Rows) -> UInt8Array:
        pictures = self.stored.read_pictures(camera, rows)
        return np.ascontiguousarray(pictures[:, ::-1, ::-1]) if self.turned else pictures
