"""LIBERO's full assets: whether a folder holds what the tasks open, and where to get it.

A folder is read as LIBERO and robosuite read it: an object is one XML file, the room of a problem class is another, and
the meshes and textures that an XML names lie relative to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from vla_rl.envs.libero.assets import ASSETS_VARIABLE, DOWNLOADED_FOLDER, SUBFOLDERS, Assets, categories
from vla_rl.envs.libero.cache import cache_root
from vla_rl.envs.libero.errors import SimulatorError
from vla_rl.envs.libero.proxy.generate import proxy_files
from vla_rl.envs.libero.suites import libero_tasks, task_files
from vla_rl.types import TaskInfo

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
HUB_DATASET = "lerobot/libero-assets"  # where hf-libero itself downloads from
# Data alone: nothing that a program would run.
HUB_PATTERNS = ("*.xml", "*.obj", "*.mtl", "*.stl", "*.msh", "*.png", "*.jpg", "*.jpeg")


@dataclass(frozen=True, slots=True)
class Room:
    """The room of a problem class, and the textures that LIBERO's arena classes put in place of those it names."""

    scene: str
    floor: str
    wall: str


_TILES, _PLASTER = "light-gray-floor-tile.png", "light-gray-plaster.png"
ROOMS = {
    "LIBERO_Tabletop_Manipulation": Room("libero_tabletop_base_style", _TILES, _PLASTER),
    "LIBERO_Floor_Manipulation": Room("libero_floor_base_style", _TILES, _PLASTER),
    "LIBERO_Study_Tabletop_Manipulation": Room("libero_study_base_style", _TILES, _PLASTER),
    "LIBERO_Kitchen_Tabletop_Manipulation": Room(
        "libero_kitchen_tabletop_base_style", "gray_ceramic_tile.png", "yellow_linen_wall_texture.png"
    ),
    "LIBERO_Living_Room_Tabletop_Manipulation": Room(
        "libero_living_room_tabletop_base_style", "seamless_wood_planks_floor.png", _PLASTER
    ),
}
_PROBLEM = re.compile(r"\(define\s*\(problem\s+(\w+)\)")


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """What is wrong with the files of one task; nothing if `problems` is empty."""

    task: TaskInfo
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SubfolderState:
    """How much of what the 40 tasks open lies in one sub-folder."""

    name: str
    present: int  # XML files
    needed: int  # by the 40 tasks


def check_tasks(folder: Path) -> list[TaskCheck]:
    """Whether every file that the 40 tasks of the four suites open is there, and every XML is MJCF.

    Raises:
        SimulatorError: hf-libero, which holds the task definitions, is not installed.
    """
    references = cache(_references)  # 40 tasks share 30 objects and five rooms
    return [
        TaskCheck(task, tuple(_problems(folder, task, references))) for suite in SUITES for task in libero_tasks(suite)
    ]


def missing_files(folder: Path) -> list[str]:
    """Everything that is wrong with a folder, each thing once, without the tasks."""
    return list(dict.fromkeys(problem for check in check_tasks(folder) for problem in check.problems))


def subfolder_states(folder: Path) -> list[SubfolderState]:
    """Completeness of each of LIBERO's five sub-folders, counted in the XML files of the four suites."""
    counted = {name: [path for path in _xml_files().values() if path.parts[0] == name] for name in SUBFOLDERS}
    return [
        SubfolderState(name, sum((folder / path).is_file() for path in paths), len(paths))
        for name, paths in counted.items()
    ]


def why_chosen(assets: Assets) -> str:
    """Why `auto` has taken a folder, in words."""
    if assets.kind == "proxy":
        return f"${ASSETS_VARIABLE} is not set and no full assets were downloaded; primitives stand in"
    if os.environ.get(ASSETS_VARIABLE):
        return f"${ASSETS_VARIABLE} names it"
    return "it was downloaded before"


@cache
def _xml_files() -> dict[str, PurePosixPath]:
    """Where each object and room lies, by name. The proxies have the same layout and cover the same suites."""
    return {path.stem: path for path in proxy_files() if path.suffix == ".xml"}


def _problems(folder: Path, task: TaskInfo, references: Callable[[Path], _References]) -> Iterator[str]:
    bddl = task_files(task).bddl
    problem_class = _PROBLEM.search(bddl.read_text(encoding="utf-8"))
    room = ROOMS.get(problem_class[1]) if problem_class else None
    if room is None:
        yield f"{bddl.name} is of no problem class that is known"
        return
    for name in (room.scene, *categories(bddl)):
        path = folder / _xml_files()[name]
        found = references(path)
        textures = {"texplane": room.floor, "tex-wall": room.wall} if name == room.scene else {}
        files = [str(PurePosixPath(file).with_name(textures.get(key, file.name))) for key, file in found.files]
        yield from (f"{path.relative_to(folder)}: {fault}" for fault in found.faults)
        for file in files:
            if not _has_content(path.parent / file):
                yield f"{path.relative_to(folder)}: {file} is missing or empty"


@dataclass(frozen=True, slots=True)
class _References:
    faults: tuple[str, ...]
    files: tuple[tuple[str, PurePosixPath], ...]  # name of the asset, file relative to the XML


def _references(path: Path) -> _References:
    """What an MJCF file names, or why it is none."""
    if not path.is_file():
        return _References(("is missing",), ())
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        return _References((f"is not XML: {error}",), ())
    if root.tag != "mujoco":
        return _References((f"is not MJCF: its root is <{root.tag}>, not <mujoco>",), ())
    used: dict[tuple[str, str], PurePosixPath] = {}
    for node in root.iterfind("./asset/*[@file]"):
        # robosuite keeps the first of equal names; the stove names a texture that LIBERO never opens for it.
        used.setdefault((node.tag, node.get("name", "")), PurePosixPath(node.get("file", "")))
    return _References((), tuple((name, file) for (_, name), file in used.items()))


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def downloaded_folder() -> Path:
    """Where `download` puts the assets."""
    return cache_root() / DOWNLOADED_FOLDER


def download(fetch: Callable[[Path], None]) -> Path:
    """Fetch the full assets into our cache; the folder is there complete or not at all.

    What was fetched before an interruption is kept aside and used by the next call.

    Args:
        fetch: puts the files into the folder that it is given; see `fetch_from_hub`.

    Returns:
        The folder, at once if it was downloaded before.

    Raises:
        SimulatorError: another download is running, or what came is incomplete.
        OSError: the disk or the network failed, as `fetch` says.
    """
    target = downloaded_folder()
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _only_one(target.with_name(f".{target.name}.lock")):
        fetch(partial)
        if faults := missing_files(partial):
            raise SimulatorError(
                f"what was downloaded from {HUB_DATASET} is not complete: {len(faults)} problems, the first: "
                f"{faults[0]}. Fix: run it again; if it stays, remove {partial} first"
            )
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub client's notes for resuming
        partial.rename(target)
    return target


def fetch_from_hub(folder: Path) -> None:
    """Download the assets that hf-libero itself would, as files, never as links into another cache.

    Raises:
        SimulatorError: there is no network or no client; the message says what else can be done.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise SimulatorError("the download needs huggingface_hub. Fix: pip install huggingface_hub") from error
    try:
        snapshot_download(HUB_DATASET, repo_type="dataset", local_dir=folder, allow_patterns=list(HUB_PATTERNS))
    except (OSError, RuntimeError, ValueError) as error:  # of requests, httpx and the client: no common class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SimulatorError(
            f"{HUB_DATASET} could not be downloaded: {reason}. Fix: run it where the hub can be reached, copy the "
            f"folder here and name it in ${ASSETS_VARIABLE}; HF_ENDPOINT names a mirror. Without full assets, "
            "env.assets=proxy works for everything but scores"
        ) from error


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SimulatorError(f"another download is running (it holds {lock}). Fix: wait for it") from error
        yield
