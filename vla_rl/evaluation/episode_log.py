"""Episodes of an evaluation, logged line by line, so that an interrupted evaluation can be continued."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

EPISODES_FILE = "episodes.jsonl"

EpisodeKey = tuple[str, int, str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """One evaluated episode."""

    suite: str
    task_id: int
    init_state: int  # index of the initial state
    seed: int
    success: bool
    env_steps: int  # control steps, settling excluded
    episode_return: float  # undiscounted
    seconds: float  # wall clock
    init_states: str = "standard"  # the set that `init_state` counts in: standard, spare, sampled or widened

    @property
    def key(self) -> EpisodeKey:
        """Return what identifies the episode under any policy: suite, task, set and number of the state, seed."""
        return (self.suite, self.task_id, self.init_states, self.init_state, self.seed)


class EpisodeLog:
    """Log `episodes.jsonl`: when opened again, it knows the episodes played before.

        with EpisodeLog(folder / EPISODES_FILE) as log:
            todo = [key for key in wanted if key not in log.done]
            log.append(result)

    Args:
        path: the file, which no other process writes to; its folder is created if it is missing. A last line truncated
            by the end of a process is removed.

    Raises:
        ValueError: a line is no episode, or an episode stands twice in the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._episodes, complete_bytes = _read(path)
        self._done = {episode.key for episode in self._episodes}
        self._stream = path.open("ab")
        self._stream.truncate(complete_bytes)

    @property
    def episodes(self) -> tuple[EpisodeResult, ...]:
        """Return all episodes so far, in the order in which they ended."""
        return tuple(self._episodes)

    @property
    def done(self) -> frozenset[EpisodeKey]:
        """Return the keys of all episodes so far."""
        return frozenset(self._done)

    def append(self, episode: EpisodeResult) -> None:
        """Append one episode.

        Raises:
            ValueError: this episode was recorded before; counting it twice would bias the rate.
        """
        if episode.key in self._done:
            raise ValueError(f"{self._path}: episode {in_words(episode.key)} was recorded before")
        self._stream.write(json.dumps(asdict(episode), ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._stream.flush()  # a killed process truncates the last line at worst
        self._done.add(episode.key)
        self._episodes.append(episode)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_episodes(path: Path) -> list[EpisodeResult]:
    """Read the episodes of an `episodes.jsonl`, without a truncated last line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no episode, or an episode stands twice in the file.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[EpisodeResult], int]:
    """Return the episodes, and the bytes of the file they take: the rest is truncated."""
    *lines, torn = path.read_bytes().split(b"\n")
    episodes: dict[EpisodeKey, EpisodeResult] = {}
    for number, line in enumerate(lines, start=1):
        episode = _parse(line, where=f"{path}, line {number}")
        if episode.key in episodes:
            raise ValueError(f"{path}, line {number}: episode {in_words(episode.key)} stands twice; remove one line")
        episodes[episode.key] = episode
    return list(episodes.values()), path.stat().st_size - len(torn)


def _parse(line: bytes, *, where: str) -> EpisodeResult:
    names = [field.name for field in fields(EpisodeResult)]
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: expected one JSON object per line, found {line[:60]!r}; remove the line") from error
    if not isinstance(record, dict) or sorted(record) != sorted(names):
        raise ValueError(f"{where}: expected an object with {', '.join(names)}, found {line[:60]!r}; remove the line")
    return EpisodeResult(**record)


def in_words(key: EpisodeKey) -> str:
    """Return text like `libero_goal task 2 standard init state 4 seed 7`."""
    return "{} task {} {} init state {} seed {}".format(*key)
