"""Description of a data set, from one pass over all of its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_rl.demos.conventions import kept_rows
from vla_rl.demos.episode import Episode, StoredEpisode
from vla_rl.demos.opening import Demos
from vla_rl.demos.scaling_statistics import action_statistics

CHUNK = 8  # actions per decision of OpenVLA-OFT on LIBERO
HELD = 5  # rows after which the fingers have followed a command
PLAUSIBLE_WIDTH = 0.1  # m; the hand of LIBERO's robot opens 0.08 m
Progress = Callable[[int, int], None]  # episodes read, and all


@dataclass(slots=True)
class Tally:
    """Counts over the episodes read so far."""

    frames: int = 0
    rows: int = 0
    starts: int = 0  # rows at which a whole chunk of actions begins
    short: int = 0  # episodes without such a row
    no_ops: int = 0
    tasks: dict[str, int] = field(default_factory=dict)  # episodes by prompt
    names: set[str] = field(default_factory=set)  # of tasks
    numbers: dict[str, list[int]] = field(default_factory=dict)  # of demonstrations, by task
    lengths: list[int] = field(default_factory=list)
    image_size: tuple[int, int] = (0, 0)
    lag: int = 0
    jumps: int = 0  # rows in which the axis-angle orientation changes by more than pi
    beyond: int = 0  # rows with a motion outside -1 ... 1
    open_widths: list[float] = field(default_factory=list)  # one mean per episode
    closed_widths: list[float] = field(default_factory=list)

    def add(self, stored: StoredEpisode, episode: Episode) -> None:
        """Count one episode."""
        self.frames += len(stored.actions)
        self.rows += len(episode)
        self.starts += max(0, len(episode) - CHUNK + 1)
        self.short += len(episode) < CHUNK
        self.no_ops += int((~kept_rows(stored.actions)).sum())
        self.tasks[stored.instruction] = self.tasks.get(stored.instruction, 0) + 1
        self.names.add(stored.task)
        self.numbers.setdefault(stored.task, []).append(stored.number)
        self.lengths.append(len(episode))
        self.image_size, self.lag = stored.image_size, stored.lag
        turns = np.linalg.norm(np.diff(episode.state[:, 3:6], axis=0), axis=1)
        self.jumps += int((turns > np.pi).sum())
        self.beyond += int((np.abs(episode.actions[:, :6]) > 1 + 1e-6).any(axis=1).sum())
        self._add_widths(episode)

    def _add_widths(self, episode: Episode) -> None:
        widths = episode.state[:, 6] - episode.state[:, 7]
        if len(episode) <= HELD or widths.min() < -0.01 or widths.max() > PLAUSIBLE_WIDTH:
            return
        signs = np.sign(episode.actions[:, 6])
        held = np.array([abs(signs[row - HELD : row].sum()) == HELD for row in range(HELD, len(signs))])
        for sign, means in ((-1, self.open_widths), (1, self.closed_widths)):
            chosen = widths[HELD:][held & (signs[HELD - 1 : -1] == sign)]
            if len(chosen):
                means.append(float(chosen.mean()))


@dataclass(frozen=True, slots=True)
class Inspection:
    """Description of a data set."""

    path: str
    format: str
    gripper: str  # `signed` or `binary`: see `GRIPPERS`
    rotated: bool  # True: the pictures in the files count as rotated by 180 degrees already
    tally: Tally
    statistics: dict[str, Any]

    @property
    def aligned(self) -> bool:
        """True if picture and action of one row of the files belong together."""
        return self.tally.lag == 0

    def as_json(self) -> dict[str, Any]:
        """Return the keys of `vla-rl demos inspect --json`, apart from `traps`."""
        tally = self.tally
        return {
            "path": self.path,
            "format": self.format,
            "episodes": len(tally.lengths),
            "frames": tally.frames,
            "samples": tally.rows,
            "chunk_starts": tally.starts,
            "tasks": list(tally.tasks),
            "episodes_per_task": tally.tasks,
            "image_size": list(tally.image_size),
            "gripper": self.gripper,
            "rotated": self.rotated,
            "no_ops": tally.no_ops,
            "no_op_share": tally.no_ops / tally.frames,
            "aligned": self.aligned,
            "shortest": min(tally.lengths),
            "longest": max(tally.lengths),
            "statistics": self.statistics,
        }


def inspect_demos(demos: Demos, progress: Progress = lambda _done, _all: None) -> Inspection:
    """Describe a data set. Reads the numbers of all episodes and no pictures.

    Raises:
        DemosError: the data are broken.
    """
    tally = Tally()

    def counted() -> Iterator[Episode]:
        for done, stored in enumerate(demos.reader, 1):
            episode = demos.convert(stored)
            tally.add(stored, episode)
            progress(done, len(demos))
            yield episode

    statistics = action_statistics(counted())
    return Inspection(str(demos.path), demos.format, demos.gripper, demos.rotated, tally, statistics)
