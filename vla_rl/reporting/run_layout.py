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


def newest_evaluation(run_dir: Path, *, is_spent: bool) -> Path | None:
    """Return the folder of the evaluation that a run itself began last; None if it has begun none.

    Args:
        run_dir: the folder of a run.
        is_spent: its budget is spent, so that it may be playing its closing evaluation. Otherwise the evaluations in
            the folder of that one are of somebody else.
    """
    evaluations = run_dir / EVALUATIONS
    found = list(_folders_in(evaluations / WHILE_TRAINING))
    if is_spent:
        found += (folder for folder in _folders_in(evaluations) if folder.name != WHILE_TRAINING)
    return max(found, key=_changed, default=None)


def _changed(folder: Path) -> float:
    try:
        return folder.lstat().st_mtime
    except OSError:  # it has gone meanwhile
        return 0.0


def _folders_in(folder: Path) -> Iterator[Path]:
    """Yield the folders in a folder, without links; none if it cannot be read."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    yield from (Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
