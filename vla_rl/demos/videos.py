"""Videos, decoded frame by frame; the only importer of av."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.demos.data_errors import DemosError, damaged, extra_needed
from vla_rl.types import UInt8Array

# Largest difference between a frame's time and a row's, as a share of the time between frames. Containers round times,
# and those of the rows are single precision.
TOLERANCE = 0.25


def read_video(file: Path, *, begin: float, fps: float, rows: Sequence[int]) -> UInt8Array:
    """Read frames of an episode, (len(rows), H, W, 3) uint8.

    Args:
        file: The video.
        begin: Start of the episode in it, in seconds.
        fps: Frames per second: row t lies at `begin` + t / `fps`.
        rows: Ascending.

    Raises:
        DemosError: the video is broken, ends too early, or has no frame at the time of a row.
        UserError: av is not installed.
    """
    frames: list[UInt8Array] = []
    decoded = _decoded(file, begin + rows[0] / fps - 0.5 / fps)
    time, picture = -np.inf, None
    for row in rows:
        wanted = begin + row / fps
        while time < wanted - 0.5 / fps:
            following = next(decoded, None)
            if following is None:
                raise DemosError(
                    file,
                    f"frame {row} of the episode at {begin:g} s",
                    "the video ends before the episode",
                    found=f"a last frame at {time:g} s",
                    allowed=f"a frame at {wanted:g} s",
                    fix="fetch the video again; if it is whole, `fps` in meta/info.json is not the video's",
                )
            time, picture = following
        if abs(time - wanted) * fps > TOLERANCE:
            raise DemosError(
                file,
                f"frame {row} of the episode at {begin:g} s",
                "no frame at the time of the row",
                found=f"the next is at {time:g} s",
                allowed=f"{wanted:g} s",
                fix="`fps` in meta/info.json has to be that of the videos",
            )
        assert picture is not None
        frames.append(np.asarray(picture.to_ndarray(format="rgb24")))
    return np.stack(frames)


def _decoded(file: Path, start: float) -> Iterator[tuple[float, Any]]:
    """Yield time in seconds and frame, from the last key frame before `start` on."""
    with extra_needed("reading the videos of LeRobot datasets"):
        import av
    if not file.is_file():
        raise DemosError(file, "", "is missing", fix="fetch the whole dataset, videos included")
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise DemosError(file, "", "holds no video")
            stream = container.streams.video[0]
            if start > 0:
                container.seek(int(start / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time is not None:
                    yield float(frame.time), frame
    except av.FFmpegError as error:
        raise damaged(
            file,
            "cannot be decoded",
            found=error,
            fix="fetch the video again; if it is whole, a codec is missing, which the wheels of av on PyPI have",
        ) from error
