"""Files that a task opens, and checks that a folder of assets holds them.

Folders are read as by LIBERO and robosuite: an object is one XML file, the room of a problem class is another, and
paths of meshes and textures in an XML file are relative to it.
"""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vla_rl.envs.libero.assets import ASSETS_VARIABLE, SUBFOLDERS, Assets
from vla_rl.envs.libero.suites import task_files
from vla_rl.errors import SimulatorError
from vla_rl.types import TaskInfo

_SHOWN = 3  # problems listed in an error


@dataclass(frozen=True, slots=True)
class Room:
    """Room of a problem class, and the textures that LIBERO's arena classes substitute for those it names."""

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
_DECLARATIONS = re.compile(r"\(:(?:fixtures|objects)\s([^()]*)\)")
PART_OF_ARENA = {"table", "floor", "kitchen_table", "living_room_table", "study_table", "coffee_table"}


def check_task_assets(assets: Assets, task: TaskInfo) -> None:
    """Check that the assets hold every file that a task opens. The proxies cover four suites, not LIBERO-90.

    Raises:
        SimulatorError: names what is missing or wrong.
    """
    problems = task_problems(assets.folder, task)
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise SimulatorError(
            f"{assets.folder} ({assets.kind} assets) lacks what {task.suite} task {task.task_id} opens: "
            f"{'; '.join(problems[:_SHOWN])}{more}. Proxies exist for libero_spatial, libero_object, libero_goal and "
            f"libero_10. Fix: give the folder of LIBERO's full assets as 'assets' or in ${ASSETS_VARIABLE}"
        )


def task_problems(
    folder: Path, task: TaskInfo, references: Callable[[Path], References] | None = None
) -> tuple[str, ...]:
    """Return what is missing or broken among the files that a task opens; empty if it can be built.

    Args:
        folder: folder of assets.
        task: task of any suite.
        references: `read_references`, or a cached version of it for many tasks.
    """
    return tuple(_problems(folder, task, references or read_references))


def categories(bddl: Path) -> list[str]:
    """Return the categories of a task's fixtures and objects: the word after each dash."""
    found: dict[str, None] = {}
    for block in _DECLARATIONS.findall(bddl.read_text(encoding="utf-8")):
        words = block.split()
        found.update(dict.fromkeys(after for dash, after in itertools.pairwise(words) if dash == "-"))
    return [name for name in found if name not in PART_OF_ARENA]


def _problems(folder: Path, task: TaskInfo, references: Callable[[Path], References]) -> Iterator[str]:
    bddl = task_files(task).bddl
    problem_class = _PROBLEM.search(bddl.read_text(encoding="utf-8"))
    rooms = {name.lower(): room for name, room in ROOMS.items()}  # LIBERO looks its classes up in lower case
    room = rooms.get(problem_class[1].lower()) if problem_class else None
    if room is None:
        yield f"{bddl.name} is of no problem class that is known"
        return
    textures = {"texplane": room.floor, "tex-wall": room.wall}
    yield from _file_problems(folder, folder / "scenes" / f"{room.scene}.xml", references, textures)
    for name in categories(bddl):
        path = object_file(folder, name)
        if path is None:
            yield f"{name}.xml is missing"
        else:
            yield from _file_problems(folder, path, references, {})


def _file_problems(
    folder: Path, path: Path, references: Callable[[Path], References], textures: dict[str, str]
) -> Iterator[str]:
    """Yield the problems of one XML file; `textures` replace those that it names."""
    found = references(path)
    yield from (f"{path.relative_to(folder)}: {fault}" for fault in found.faults)
    for key, file in found.files:
        opened = file.with_name(textures.get(key, file.name))
        if not _has_content(path.parent / opened):
            yield f"{path.relative_to(folder)}: {opened} is missing or empty"


def object_file(folder: Path, name: str) -> Path | None:
    """Return the file that LIBERO's classes use for an object; an articulated one has no folder of its own."""
    places = [folder / SUBFOLDERS[0], *(folder / place / name for place in SUBFOLDERS[1:4])]
    return next((place / f"{name}.xml" for place in places if (place / f"{name}.xml").is_file()), None)


@dataclass(frozen=True, slots=True)
class References:
    """Files named by an MJCF file."""

    faults: tuple[str, ...]  # why it is not MJCF
    files: tuple[tuple[str, PurePosixPath], ...]  # name of the asset, file relative to the XML


def read_references(path: Path) -> References:
    """Read the files that an MJCF file names, or why it is not MJCF."""
    if not path.is_file():
        return References(("is missing",), ())
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        return References((f"is not XML: {error}",), ())
    if root.tag != "mujoco":
        return References((f"is not MJCF: its root is <{root.tag}>, not <mujoco>",), ())
    used: dict[tuple[str, str], PurePosixPath] = {}
    for node in root.iterfind("./asset/*[@file]"):
        # robosuite keeps the first of equal names; the stove names a texture that LIBERO never opens for it.
        used.setdefault((node.tag, node.get("name", "")), PurePosixPath(node.get("file", "")))
    return References((), tuple((name, file) for (_, name), file in used.items()))


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
