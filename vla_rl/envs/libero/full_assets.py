"""LIBERO's full assets: checks of a folder, and the download."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vla_rl.envs.libero.asset_files import read_references, task_problems
from vla_rl.envs.libero.assets import ASSETS_VARIABLE, DOWNLOADED_FOLDER, Assets
from vla_rl.envs.libero.cache import cache_root, writing_to
from vla_rl.envs.libero.suites import libero_tasks
from vla_rl.errors import SimulatorError
from vla_rl.files import rename
from vla_rl.libero_suites import MAIN_SUITES, SUITES
from vla_rl.types import TaskInfo

HUB_DATASET = "lerobot/libero-assets"  # the source from which hf-libero itself downloads
# Data only, nothing executable.
HUB_PATTERNS = ("*.xml", "*.obj", "*.mtl", "*.stl", "*.msh", "*.png", "*.jpg", "*.jpeg")


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """Problems of the files of one task; none if `problems` is empty."""

    task: TaskInfo
    problems: tuple[str, ...]


def check_tasks(folder: Path, suites: Sequence[str] = MAIN_SUITES) -> list[TaskCheck]:
    """Check that every file that the tasks of some suites open is there, and that every XML file is MJCF.

    Raises:
        SimulatorError: hf-libero, which holds the task definitions, is not installed.
    """
    references = cache(read_references)  # tasks share objects and rooms
    return [
        TaskCheck(task, task_problems(folder, task, references)) for suite in suites for task in libero_tasks(suite)
    ]


def completeness(folder: Path) -> dict[str, str]:
    """Describe how many tasks of each suite find all their files, LIBERO-90 last."""
    words = {}
    for suite in SUITES:
        checks = check_tasks(folder, [suite])
        good = sum(not check.problems for check in checks)
        words[suite] = f"{good} of {len(checks)} tasks have all their files"
    return words


def missing_files(folder: Path) -> list[str]:
    """Return the problems of a folder for the 40 tasks of four suites, each once."""
    return list(dict.fromkeys(problem for check in check_tasks(folder) for problem in check.problems))


def why_chosen(assets: Assets) -> str:
    """Explain why `auto` has chosen a folder."""
    if os.environ.get(ASSETS_VARIABLE):
        return f"${ASSETS_VARIABLE} names it"
    if assets.kind == "proxy":
        return f"${ASSETS_VARIABLE} is not set and no full assets were downloaded; primitives stand in"
    return "it was downloaded before"


def downloaded_folder() -> Path:
    """Return the folder that `download` writes to."""
    return cache_root() / DOWNLOADED_FOLDER


def download(fetch: Callable[[Path], None]) -> Path:
    """Fetch the full assets into the cache; the folder appears complete or not at all.

    Files fetched before an interruption are kept and used by the next call.

    Args:
        fetch: function that puts the files into a given folder; see `fetch_from_hub`.

    Returns:
        The folder, immediately if it was downloaded before.

    Raises:
        SimulatorError: another download is running, the folder cannot be written, or the downloaded files are
            incomplete.
    """
    target = downloaded_folder()
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.partial")
    lock = target.with_name(f".{target.name}.lock")
    with writing_to(target.parent), _only_one(lock):
        partial.mkdir(exist_ok=True)
        fetch(partial)
        if faults := missing_files(partial):
            raise SimulatorError(
                f"what was downloaded from {HUB_DATASET} is not complete: {len(faults)} problems, the first: "
                f"{faults[0]}. Fix: run it again; if it stays, remove {partial} first"
            )
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub client's state for resuming
        rename(partial, target)
    return target


def fetch_from_hub(folder: Path) -> None:
    """Download the assets that hf-libero itself would, as files, never as links into another cache.

    Raises:
        SimulatorError: there is no network or no client; the message names alternatives.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise SimulatorError("the download needs huggingface_hub. Fix: pip install huggingface_hub") from error
    try:
        snapshot_download(HUB_DATASET, repo_type="dataset", local_dir=folder, allow_patterns=list(HUB_PATTERNS))
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # requests, httpx and the client have no common class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SimulatorError(
            f"{HUB_DATASET} could not be downloaded: {reason}. Fix: run it where the hub can be reached, copy the "
            f"folder here and name it in ${ASSETS_VARIABLE}; HF_ENDPOINT names a mirror. Without full assets, "
            "env.assets=proxy (`vla-rl eval --assets proxy`) works for everything but scores"
        ) from error


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SimulatorError(f"another download is running (it holds {lock}). Fix: wait for it") from error
        yield
