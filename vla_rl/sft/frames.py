"""Prepared frames of a data set on disk, so that any of them can be read at any time and memory stays small.

Every picture is decoded and resized once, and written into one array: (rows, cameras, 3, S, S) uint8, S the pixels that
the policy sees. Reading videos, JPEGs or HDF5 at random for every batch would cost more than the training.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from vla_rl.demos import Demos
from vla_rl.demos.episode import Episode
from vla_rl.files import atomic_write_text
from vla_rl.ipc.memory_check import readable
from vla_rl.learner.collectives import Collectives
from vla_rl.policies.image_transforms import Transform, lanczos3, resample, resampling_matrix, to_frames
from vla_rl.run.folder_lock import lock
from vla_rl.sft.samples import Rollouts, Rows
from vla_rl.types import UInt8Array

ROWS_AT_ONCE = 32  # pictures of a camera in memory per thread
LOOK_EVERY_S = 1.0  # whether another run has prepared the file
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
    """Return a digest of everything that the prepared frames depend on: the files' names, sizes and times included.

    It is the same however the path was written, and whatever else lies in the folder, such as these frames.
    """
    files = sorted(file.resolve() for file in demos.reader.paths)
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
    threads: int,
    collectives: Collectives,
    progress: Progress = lambda _done, _total: None,
    waits: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> FrameStore | None:
    """Return the frames, which are prepared now unless they are there already. All ranks call it together.

    Runs may share a file: one of them prepares it, while the others wait. What a killed run left of it is written over.

    Args:
        file: of the array; a mark beside it says that it is complete.
        demos: source of the pictures.
        rollouts: numbers of the same episodes.
        cameras: in the order of the policy's frames.
        transform: the policy's; its crop is left out.
        threads: of this rank.
        collectives: of the ranks. Each prepares its share of the episodes, and all write into one file: several
            machines need a shared file system.
        progress: called with episodes that are done, and all of this rank's.
        waits: called once, on rank 0, if another run is preparing the file.
        stop: whether this rank was asked to stop; looked at after every episode.

    Returns:
        The frames; None if a rank was asked to stop first.

    Raises:
        DemosError: a picture cannot be read.
        OSError: the disk is full.
    """
    shape = store_shape(rollouts, cameras, transform)
    settings = json.dumps({"identity": identity(demos, cameras, transform), "shape": list(shape)})
    if collectives.any_over_ranks(not _is_complete(file, shape, settings)):
        with ExitStack() as stack:
            descriptor = None
            if collectives.is_main:
                file.parent.mkdir(parents=True, exist_ok=True)
                descriptor = stack.enter_context(file.open("ab")).fileno()  # another run may use it: no truncation
            if not _wait_for_turn(descriptor, collectives, waits, stop):
                return None
            if collectives.any_over_ranks(descriptor is not None and not _is_complete(file, shape, settings)):
                if descriptor is not None:
                    _mark_of(file).unlink(missing_ok=True)
                    _allocate(file, descriptor, shape)
                collectives.barrier()
                array = np.memmap(file, np.uint8, "r+", shape=shape)
                compressed = demos.format == "rlds"  # its pictures are JPEGs already

                def prepare(index: int) -> None:
                    first = int(rollouts.first[index])
                    _prepare_episode(array, demos[index], first, cameras, transform, compressed=compressed)

                if not _prepare_all(len(rollouts.length), prepare, threads, collectives, progress, stop):
                    return None
                array.flush()
                collectives.barrier()
                if descriptor is not None:
                    atomic_write_text(_mark_of(file), settings)
    return FrameStore(np.memmap(file, np.uint8, "r", shape=shape))


def _wait_for_turn(
    descriptor: int | None, collectives: Collectives, waits: Callable[[], None], stop: Callable[[], bool]
) -> bool:
    """Wait until no other run prepares the file, which rank 0 has open; return False if a rank was asked to stop."""
    has_waited = False
    while not collectives.any_over_ranks(descriptor is not None and lock(descriptor)):
        if descriptor is not None and not has_waited:
            waits()
        has_waited = True
        if collectives.any_over_ranks(stop()):
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def _prepare_all(
    episodes: int,
    prepare: Callable[[int], None],
    threads: int,
    collectives: Collectives,
    progress: Progress,
    stop: Callable[[], bool],
) -> bool:
    """Prepare this rank's episodes; return False if a rank was asked to stop first."""
    pool = ThreadPoolExecutor(threads)
    try:
        own = [pool.submit(prepare, index) for index in range(collectives.rank, episodes, collectives.num_ranks)]
        for place in range(-(-episodes // collectives.num_ranks)):  # as many on every rank: they decide together
            if place < len(own):
                own[place].result()
                progress(place + 1, len(own))
            if collectives.any_over_ranks(stop()):
                return False
    finally:
        pool.shutdown(cancel_futures=True)
    return True


def _mark_of(file: Path) -> Path:
    return file.with_suffix(".json")


def _is_complete(file: Path, shape: tuple[int, ...], settings: str) -> bool:
    """Return whether all frames of these settings are there."""
    mark = _mark_of(file)
    if not mark.is_file() or mark.read_text(encoding="utf-8") != settings:
        return False
    return file.is_file() and file.stat().st_size == math.prod(shape)


def _allocate(file: Path, descriptor: int, shape: tuple[int, ...]) -> None:
    """Reserve the whole file, so that a full disk is an error here and not a signal when a page is written.

    Raises:
        OSError: the disk is full; what was reserved is free again.
    """
    size = math.prod(shape)
    try:
        os.truncate(descriptor, size)  # of a run whose data have changed
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.truncate(descriptor, 0)
        needed = f"the frames take {readable(size)}, elsewhere with demos.cache=FOLDER"
        raise OSError(error.errno, f"{error.strerror} ({needed})", str(file)) from error


def remove_frames(file: Path) -> None:
    """Remove prepared frames."""
    _mark_of(file).unlink(missing_ok=True)
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
