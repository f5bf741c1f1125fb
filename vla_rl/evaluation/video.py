"""Videos of episodes, written by the env workers: all cameras side by side, the task above, the outcome below.

The simulator draws every control step instead of one per decision. Physics and the frames of the decisions stay the
same to the last bit, so that a video does not change its episode.
"""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_rl.envs.seeds import reset_seed
from vla_rl.evaluation.episode_log import EpisodeResult
from vla_rl.files import rename
from vla_rl.types import ChunkResult, Environment, FloatArray, Observation, TaskInfo, UInt8Array

if TYPE_CHECKING:
    from vla_rl.envs.kind import EnvBuilder
    from vla_rl.run.plan import Plan

VIDEOS = "videos"  # folder below the results
Keep = Literal["failures", "all"]

FRAMES_PER_S = 20  # LIBERO's control frequency: real time
OUTCOME_FRAMES = 20  # how long the last frame is shown
_MIN_SIDE = 256  # small frames are enlarged
_BLOCK = 16  # encoders need sides that are multiples of it
_FONT_SIZE = 15
_LINE = 20
_INK, _PAPER = (235, 235, 235), (24, 24, 24)
_GOOD, _BAD = (90, 200, 110), (235, 95, 85)


class DrawsEveryStep(Environment, Protocol):
    """Environment whose `step_chunk` keeps the frames of all its control steps."""

    @property
    def chunk_frames(self) -> UInt8Array:
        """Return the frames, (executed, N, H, W, 3)."""
        ...


def check_video() -> None:
    """Check that videos can be written here.

    Raises:
        ValueError: the encoder is not installed.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError(
            "--video: writing videos needs imageio-ffmpeg, which is not installed. "
            "Fix: pip install 'vla-rl[video]', or leave the option out"
        )


def recorded_builders(
    plan: Plan,
    folders: Sequence[Path],
    *,
    keep: Keep,
    seeds: Sequence[int],
    titles: Sequence[str] | None = None,
) -> tuple[EnvBuilder, ...]:
    """Return builders of a plan's tasks that record videos.

    Args:
        plan: of the evaluation.
        folders: folders of the videos, one for each task.
        keep: which videos to keep.
        seeds: seeds of the evaluation; a video's name contains its seed.
        titles: lines above the pictures, one for each task; None: the tasks' instructions.

    Raises:
        ValueError: the environment renders no images.
    """
    if not plan.env.filming_builders:
        raise ValueError(f"--video: the environment {plan.setup.env.name!r} has no cameras; leave the option out")
    given: Sequence[str | None] = [None] * len(folders) if titles is None else titles
    return tuple(
        partial(
            build_recorded,
            build=cast("Callable[[], DrawsEveryStep]", builder),
            seen=plan.setup.env.num_images,
            folder=folder,
            keep=keep,
            seeds=tuple(seeds),
            title=title,
        )
        for builder, folder, title in zip(plan.env.filming_builders, folders, given, strict=True)
    )


def build_recorded(
    *,
    build: Callable[[], DrawsEveryStep],
    seen: int,
    folder: Path,
    keep: Keep,
    seeds: Sequence[int],
    title: str | None = None,
) -> RecordedEnv:
    """Build an environment that records its episodes; see `RecordedEnv`."""
    return RecordedEnv(build(), seen=seen, folder=folder, keep=keep, seeds=seeds, title=title)


def video_name(*, suite: str, task_id: int, init_state: int, seed: int, success: bool) -> str:
    """Return the name of an episode's video."""
    outcome = "success" if success else "failure"
    return f"{suite}_task{task_id}_state{init_state}_seed{seed}_{outcome}.mp4"


def count_videos(folder: Path, episodes: Iterable[EpisodeResult], *, keep: Keep) -> tuple[int, int]:
    """Count the episodes that should have a video: those that have one, and those that do not.

    An episode that was played before videos were asked for is not played again.
    """
    names = [
        video_name(
            suite=episode.suite,
            task_id=episode.task_id,
            init_state=episode.init_state,
            seed=episode.seed,
            success=episode.success,
        )
        for episode in episodes
        if keep == "all" or not episode.success
    ]
    found = sum((folder / name).is_file() for name in names)
    return found, len(names) - found


class RecordedEnv:
    """Environment that records videos of its episodes. Satisfies `vla_rl.types.Environment`.

    A video is written during the episode, under a name that begins with a dot, and renamed when the outcome is known.
    """

    def __init__(
        self,
        env: DrawsEveryStep,
        *,
        seen: int,
        folder: Path,
        keep: Keep,
        seeds: Sequence[int],
        title: str | None = None,
    ) -> None:
        """Start recording.

        Args:
            env: environment that renders all cameras.
            seen: number of cameras, from the first, that are in the observations.
            folder: folder of the videos; created if it is missing.
            keep: `failures` or `all`.
            seeds: seeds of the evaluation, from which those of its resets were derived (`reset_seed`).
            title: line above the pictures; None: the task's instruction.
        """
        self._env = env
        self._seen = seen
        self._folder = folder
        self._keep: Keep = keep
        self._seeds = tuple(seeds)
        self._title = title
        self._video: _Video | None = None
        self._names = ("", "")  # of the video after success, after failure
        self._steps = 0

    @property
    def task(self) -> TaskInfo:
        """Return the task that is simulated."""
        return self._env.task

    @property
    def horizon(self) -> int:
        """Return the control steps after which an episode is truncated."""
        return self._env.horizon

    def reset(self, init_state: int, *, seed: int = 0) -> Observation:
        """Start an episode and its video."""
        self._discard()
        observation = self._env.reset(init_state, seed=seed)
        task = self._env.task
        named = {reset_seed(one, task.task_id, init_state): one for one in self._seeds}[seed]
        success, failure = (
            video_name(suite=task.suite, task_id=task.task_id, init_state=init_state, seed=named, success=won)
            for won in (True, False)
        )
        self._names = (success, failure)
        self._steps = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        self._video = _Video(self._folder / f".{failure}", task.language if self._title is None else self._title)
        self._video.add(observation.frames, self._progress())
        return self._visible(observation)

    def step_chunk(self, actions: FloatArray) -> ChunkResult:
        """Execute a chunk and record it; at the episode's end keep or drop the video."""
        result = self._env.step_chunk(actions)
        assert self._video is not None
        frames = self._env.chunk_frames
        for frame in frames:
            self._steps += 1
            self._video.add(frame, self._progress())
        if result.terminated or result.truncated:
            self._end(frames[-1], success=result.terminated)
        return replace(result, observation=self._visible(result.observation))

    def close(self) -> None:
        """Drop an unfinished video and free the simulator; safe to call twice."""
        self._discard()
        self._env.close()

    def _progress(self) -> str:
        return f"step {self._steps} of at most {self._env.horizon}"

    def _end(self, last: UInt8Array, *, success: bool) -> None:
        assert self._video is not None
        if success and self._keep == "failures":
            self._discard()
            return
        outcome = f"SUCCESS after {self._steps} steps" if success else f"FAILURE: not done after {self._steps} steps"
        for _ in range(OUTCOME_FRAMES):
            self._video.add(last, outcome, ink=_GOOD if success else _BAD)
        self._video.finish(self._folder / self._names[0 if success else 1])
        self._video = None

    def _discard(self) -> None:
        if self._video is not None:
            self._video.discard()
            self._video = None

    def _visible(self, observation: Observation) -> Observation:
        return Observation(frames=observation.frames[: self._seen], state=observation.state)


class _Video:
    """Video file that grows frame by frame."""

    def __init__(self, path: Path, title: str) -> None:
        self._path = path
        self._title = title
        self._encoder: Generator[None, UInt8Array | None, None] | None = None

    def add(self, frames: UInt8Array, footer: str, *, ink: tuple[int, int, int] = _INK) -> None:
        """Append one moment, (N, H, W, 3)."""
        page = compose(frames, self._title, footer, ink=ink)
        if self._encoder is None:
            self._encoder = _open_encoder(self._path, width=page.shape[1], height=page.shape[0])
        self._encoder.send(page)

    def finish(self, path: Path) -> None:
        """Close the file and give it its name."""
        self._close()
        rename(self._path, path)

    def discard(self) -> None:
        """Remove what was written."""
        self._close()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._encoder is not None:
            self._encoder.close()


def _open_encoder(path: Path, *, width: int, height: int) -> Generator[None, UInt8Array | None, None]:
    import imageio_ffmpeg

    encoder: Generator[None, UInt8Array | None, None] = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=FRAMES_PER_S,
        quality=7,
        macro_block_size=_BLOCK,
        ffmpeg_log_level="error",
        output_params=["-threads", "1"],  # beside a simulator in every other process
    )
    encoder.send(None)
    return encoder


def compose(frames: UInt8Array, title: str, footer: str, *, ink: tuple[int, int, int] = _INK) -> UInt8Array:
    """Compose one frame of a video: frames (N, H, W, 3) side by side, two lines of title above, one line below.

    Returns:
        (H', W', 3) uint8, both sides multiples of 16.
    """
    zoom = -(-_MIN_SIDE // frames.shape[1])
    picture = np.concatenate(list(frames.repeat(zoom, axis=1).repeat(zoom, axis=2)), axis=1)
    height, width = picture.shape[:2]
    page = Image.new("RGB", (_rounded_up(width), _rounded_up(height + 3 * _LINE + 8)), _PAPER)
    page.paste(Image.fromarray(picture), (0, 2 * _LINE + 4))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(_FONT_SIZE)
    lines = textwrap.wrap(title, width=width * 2 // _FONT_SIZE)[:2]
    for number, line in enumerate(lines):
        draw.text((6, 2 + number * _LINE), line, font=font, fill=_INK)
    draw.text((6, height + 2 * _LINE + 6), footer, font=font, fill=ink)
    return np.asarray(page)


def _rounded_up(side: int) -> int:
    return -(-side // _BLOCK) * _BLOCK
