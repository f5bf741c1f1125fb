"""Folders of a run that several processes write, and that readers look into while they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

LOGS_FOLDER = "logs"
EVALUATIONS = "eval"  # folder of a run, with one or more evaluations below it
WHILE_TRAINING = "while_training"  # folder in it with those that the run itself makes, one after another

_OF_A_RANK = "rank_"


def log_folder(folder: Path, *, rank: int = 0, num_ranks: int = 1) -> Path:
    """Return where the processes of a rank write their logs."""
    logs = folder / LOGS_FOLDER
    return logs / f"{_OF_A_RANK}{rank}" if num_ranks > 1 else logs


def log_folders(folder: Path) -> list[Path]:
    """Return every folder with logs of a run or an evaluation: its own, then those of the ranks."""
    logs = log_folder(folder)
    return [logs, *sorted(inner for inner in _folders_in(logs) if inner.name.startswith(_OF_A_RANK))]


def _folders_in(folder: Path) -> Iterator[Path]:
    """Yield the folders in a folder, without links; none if it cannot be read."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    yield from (Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
