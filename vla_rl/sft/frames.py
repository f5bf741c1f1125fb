"""Prepared frames of a data set on disk, so that any of them can be read at any time and memory stays small.

Every picture is decoded and resized once, and written into one array: (rows, cameras, 3, S, S) uint8, S the pixels that
the policy sees. Reading videos, JPEGs or HDF5 at random for every batch would cost more than the training.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vla_rl.demos import Demos
from vla_rl.demos.episode import Episode
from vla_rl.files import atomic_write_text
from vla_rl.policies.image_transforms import Transform, lanczos3, resample, resampling_matrix, to_frames
from vla_rl.sft.samples import Rollouts, Rows
from vla_rl.types import UInt8Array

ROWS_AT_ONCE = 32  # pictures of a camera in memory per thread
Progress = Callable[[int, int], None]


class FrameStore:
    """Frames of every row, mapped into memory."""

    def __init__(self, array: UInt8Array) -> None:
        self._array = array

    @property
    def num_cameras(self) -> int:
        """Return N."""
        return int(self._array.shape[1])

    def planes(self, row: int, camera: int) -> UInt8Array:
        """Return one frame before its crop, (3, S, S) uint8."""
        frame: UInt8Array = self._array[row, camera]
        return frame


def store_shape(rollouts: Rollouts, cameras: Sequence[str], transform: Transform) -> tuple[int, ...]:
    """Return the shape of the array of frames, one byte per element."""
    size = transform.output_size
    return (rollouts.num_rows, len(cameras), 3, size, size)


def identity(demos: Demos, cameras: Sequence[str], transform: Transform) -> str:
    """Return a digest of everything that the prepared frames depend on: the files' names, sizes and times included."""
    path = demos.path
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    listed = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    settings = (demos.rotated, demos.drops_no_ops, list(cameras), type(transform).__name__, transform.output_size)
    return hashlib.sha256(json.dumps([listed, settings], default=str).encode()).hexdigest()[:16]


def prepare_frames(
    file: Path,
    demos: Demos,
    rollouts: Rollouts,
    *,
    cameras: Sequence[str],
    transform: Transform,
    rank: int,
    num_ranks: int,
    threads: int,
    barrier: Callable[[], None],
    progress: Progress = lambda _done, _total: None,
) -> FrameStore:
    """Return the frames, which are prepared now unless they are there already. All ranks call it together.

    Args:
        file: of the array; a mark beside it says that it is complete.
        demos: source of the pictures.
        rollouts: numbers of the same episodes.
        cameras: in the order of the policy's frames.
        transform: the policy's; its crop is left out.
        rank: of this process; every rank prepares its share of the episodes.
        num_ranks: ranks, which write into one file: several machines need a shared file system.
        threads: of this rank.
        barrier: waits for the other ranks.
        progress: called with episodes that are done, and all of this rank's.

    Raises:
        DemosError: a picture cannot be read.
        OSError: the disk is full.
    """
    shape = store_shape(rollouts, cameras, transform)
    mark = file.with_suffix(".json")
    settings = json.dumps({"identity": identity(demos, cameras, transform), "shape": list(shape)})
    is_there = mark.is_file() and mark.read_text(encoding="utf-8") == settings and file.is_file()
    barrier()  # everyone has looked before anyone writes
    if not is_there:
        if rank == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            mark.unlink(missing_ok=True)
            _allocate(file, shape)
        barrier()
        array = np.memmap(file, np.uint8, "r+", shape=shape)
        own = range(rank, len(rollouts.length), num_ranks)
        compressed = demos.format == "rlds"  # its pictures are JPEGs already

        def prepare(index: int) -> None:
            _prepare_episode(array, demos[index], int(rollouts.first[index]), cameras, transform, compressed=compressed)

        with ThreadPoolExecutor(threads) as pool:
            for done, _ in enumerate(pool.map(prepare, own), 1):
                progress(done, len(own))
        array.flush()
        del array
        barrier()
        if rank == 0:
            atomic_write_text(mark, settings)
    return FrameStore(np.memmap(file, np.uint8, "r", shape=shape))


def _allocate(file: Path, shape: tuple[int, ...]) -> None:
    """Reserve the whole file, so that a full disk is an error here and not a signal when a page is written."""
    with file.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, int(np.prod(shape)))


def remove_frames(file: Path) -> None:
    """Remove prepared frames."""
    file.with_suffix(".json").unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def _prepare_episode(
    array: UInt8Array, episode: Episode, first: int, cameras: Sequence[str], transform: Transform, *, compressed: bool
) -> None:
    for place, camera in enumerate(cameras):
        for rows in _cuts(len(episode)):
            pictures = to_size(episode.pictures(camera, rows.tolist()), transform.input_size)
            array[first + rows, place] = transform.resize(pictures, compressed=compressed).astype(np.uint8)


def _cuts(length: int) -> Iterator[Rows]:
    for begin in range(0, length, ROWS_AT_ONCE):
        yield np.arange(begin, min(length, begin + ROWS_AT_ONCE))


def to_size(pictures: UInt8Array, size: int) -> UInt8Array:
    """Resize (N, H, W, 3) to (N, size, size, 3) by Lanczos-3; a picture of that size stays as it is."""
    height, width = pictures.shape[1:3]
    if (height, width) == (size, size):
        return pictures
    rows = resampling_matrix(height, size, kernel=lanczos3, support=3.0)
    columns = resampling_matrix(width, size, kernel=lanczos3, support=3.0)
    return to_frames(resample(pictures, rows, columns))


@contextmanager
def removed_at_the_end(file: Path | None) -> Iterator[None]:
    """Remove prepared frames once the block has ended without an error; None: they are kept for other runs."""
    yield
    if file is not None:
        remove_frames(file)
