"""Files of a run that the page may show: logs, videos and alarms. Nothing outside the run's folder is ever opened."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from vla_rl.files import ASIDE
from vla_rl.reporting.run_layout import EVALUATIONS, LOGS_FOLDER, log_folders

LOG_BYTES = 64 << 10  # of a log, from its end
MOST_LOGS = 200
MOST_VIDEOS = 12  # the newest
MOST_FOLDERS = 1000  # below the evaluations


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One file that the page may ask for."""

    name: str  # relative to the run's folder, with slashes
    num_bytes: int
    changed: float  # seconds since 1970


def list_logs(run_dir: Path) -> list[ListedFile]:
    """Return the logs of a run's processes, sorted by name, with what a study caught of the run's output.

    Where there are too many, those of the first workers of every rank are kept, besides its learner's.
    """
    found: list[tuple[int, ListedFile]] = []  # each with its place in its folder
    for folder in (*log_folders(run_dir), run_dir):
        entries = [entry for entry in _entries(folder, run_dir) if entry.name.endswith(".log")]
        names = [(folder / entry.name).relative_to(run_dir).as_posix() for entry in entries]
        logs = [file for each in zip(names, entries, strict=True) if (file := _listed(*each))]
        found += enumerate(sorted(logs, key=_number))
    kept = [file for _, file in sorted(found, key=itemgetter(0))[:MOST_LOGS]]
    return sorted(kept, key=lambda file: (not file.name.startswith(LOGS_FOLDER), file.name))


def _number(log: ListedFile) -> int:
    """Return the number of the worker that wrote a log; -1 for a process that is the only one of its kind."""
    found = re.search(r"(\d+)\.log$", log.name)
    return int(found[1]) if found else -1


def list_videos(run_dir: Path) -> list[ListedFile]:
    """Return the newest videos of a run's evaluations, newest first."""
    found = []
    for folder, names in islice(_walk(run_dir / EVALUATIONS, run_dir), MOST_FOLDERS):
        for entry in names:
            if entry.name.endswith(".mp4") and not entry.name.startswith(ASIDE):
                listed = _listed((folder / entry.name).relative_to(run_dir).as_posix(), entry)
                found += [] if listed is None else [listed]
    return sorted(found, key=lambda file: -file.changed)[:MOST_VIDEOS]


def _walk(folder: Path, run_dir: Path) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    entries = _entries(folder, run_dir)
    yield folder, entries
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, run_dir)


def _entries(folder: Path, run_dir: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds; nothing if it cannot be read or a link leads out of the run."""
    try:
        return list(os.scandir(folder)) if folder.resolve().is_relative_to(run_dir.resolve()) else []
    except OSError:
        return []


def _listed(name: str, entry: os.DirEntry[str]) -> ListedFile | None:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:  # it has gone meanwhile
        return None
    return ListedFile(name, found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None


def open_listed(run_dir: Path, name: str, listed: list[ListedFile]) -> BinaryIO:
    """Open a file of a list.

    Raises:
        FileNotFoundError: the list has no such name, or the file has become something else.
    """
    if name not in {file.name for file in listed}:
        raise FileNotFoundError(name)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    stream = os.fdopen(os.open(run_dir / name, flags), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise FileNotFoundError(name)
    return stream


def read_end(stream: BinaryIO, *, num_bytes: int = LOG_BYTES) -> str:
    """Return the last whole lines of a text, at most so many bytes; what is not UTF-8 is replaced."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - num_bytes))
    text = stream.read(num_bytes)
    if size > num_bytes:
        text = text.partition(b"\n")[2]
    return text.decode("utf-8", errors="replace")
