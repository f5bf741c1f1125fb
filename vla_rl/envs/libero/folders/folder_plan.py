"""Plans of the tasks in a user's folder, made once all their files are known to be in order."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from vla_rl.envs.kind import EnvBuilder, EnvPlan, FolderSuite
from vla_rl.envs.libero.asset_files import object_file, read_references, task_problems
from vla_rl.envs.libero.assets import resolve_assets
from vla_rl.envs.libero.folders.definitions import BadDefinitionError, Definition, faults_of, parse_definition
from vla_rl.envs.libero.folders.suite_folder import Entry, SuiteFolder, problems_text, read_suite_folder
from vla_rl.envs.libero.init_states import num_init_states, read_states
from vla_rl.envs.libero.suites import FolderTask, libero_task, prompt, task_files, task_names
from vla_rl.errors import SimulatorError

if TYPE_CHECKING:
    from vla_rl.envs.libero.env import LiberoEnv
    from vla_rl.envs.libero.section import LiberoSection

PLUS_EPISODES, USUAL_EPISODES = 1, 50  # per task, by the protocols of LIBERO-plus and of LIBERO
_ARM_AND_FINGERS = 9


def plan_folder(
    section: LiberoSection, path: Path, ids: Sequence[int] | None, *, plan: Callable[[], EnvPlan]
) -> EnvPlan:
    """Return the plan of a folder's tasks.

    Args:
        section: how they are played; its suite is the one that they were made from.
        path: folder of BDDL files.
        ids: positions in its own list; None for all that can be simulated.
        plan: returns the plan of the section.

    Raises:
        ValueError: there is no such task, it needs more than LIBERO, or files are wrong; names all of them.
    """
    folder = read_suite_folder(path)
    entries = _chosen(folder, ids)
    tasks = _checked(folder, entries, assets=resolve_assets(section.assets).folder, stored=_is_stored(section))
    own = plan()
    return replace(
        own,
        tasks=tuple(tasks),
        builders=_builders(own.builders[0], tasks, entries),
        filming_builders=_builders(own.filming_builders[0], tasks, entries),
        num_init_states=tuple(num_init_states(task, section.init_states) for task in tasks),
        folder=_described(folder, entries),
    )


def _is_stored(section: LiberoSection) -> bool:
    return section.init_states not in ("sampled", "widened")


def _chosen(folder: SuiteFolder, ids: Sequence[int] | None) -> list[Entry]:
    """Return the entries that are played.

    Raises:
        ValueError: an id does not exist, or a task needs LIBERO-plus's own files; or all do.
    """
    if ids is None:
        found = [entry for entry in folder.entries if not entry.variant.foreign]
        if found:
            return found
        ids = range(len(folder.entries))
    if unknown := [number for number in ids if number >= len(folder.entries)]:
        raise ValueError(f"--tasks: {folder.path} has tasks 0..{len(folder.entries) - 1}, found {unknown}")
    chosen = [folder.entries[number] for number in ids]
    problems = [f"task {it.task_id}, {it.name}: {it.variant.foreign}" for it in chosen if it.variant.foreign]
    if problems:
        raise ValueError(problems_text(folder.path, problems, fix="These cannot be played with LIBERO's own files"))
    return chosen


def _checked(folder: SuiteFolder, entries: Sequence[Entry], *, assets: Path, stored: bool) -> list[FolderTask]:
    """Return the tasks of a folder.

    Raises:
        ValueError: names every file that is wrong, and what is wrong with it.
    """
    checks = _Checks(folder, assets)
    problems: dict[str, None] = {}
    tasks = []
    for entry in entries:
        problems |= dict.fromkeys(checks.of(entry, stored=stored))
        if (definition := checks.definition(entry.files.bddl)) is not None:
            language = _instruction(folder.base, entry, definition)
            tasks.append(FolderTask(folder.name, entry.task_id, entry.name, language, entry.files))
    if problems:
        raise ValueError(
            problems_text(folder.path, list(problems), fix="Fix the files, or name the tasks to play with --tasks")
        )
    return tasks


def _instruction(base: str, entry: Entry, definition: Definition) -> str:
    """Return the text that a policy reads.

    The text in a definition is not what policies were trained on: that is the name of the file. So it counts only where
    the folder changed it, as LIBERO-Pro's `_lan` and `_task` and LIBERO-plus's `_language_` do.
    """
    name = entry.variant.base
    if name in task_names(base):
        own = _stock_language(base, name)
        return prompt(name) if own == definition.language else definition.language
    return prompt(name)


@cache
def _stock_language(suite: str, name: str) -> str:
    task = libero_task(suite, task_names(suite).index(name))
    return parse_definition(task_files(task).bddl.read_text(encoding="utf-8")).language


class _Checks:
    """Checks of the files of a folder, each of which is read once."""

    def __init__(self, folder: SuiteFolder, assets: Path) -> None:
        self._folder = folder
        self._assets = assets
        self._references = cache(read_references)
        self._state_problems = cache(lambda path, size: tuple(_state_problems(path, size)))
        self._lacks: dict[Path, tuple[str, ...]] = {}
        self._read: dict[Path, tuple[Definition | None, list[str]]] = {}

    def definition(self, path: Path) -> Definition | None:
        """Return a definition; None if it cannot be read."""
        return self._definition_and_problems(path)[0]

    def of(self, entry: Entry, *, stored: bool) -> Iterator[str]:
        """Yield the problems of the files of one task.

        Args:
            entry: the task.
            stored: whether its stored initial states are needed.
        """
        definition, problems = self._definition_and_problems(entry.files.bddl)
        yield from problems
        if definition is None or problems:
            return
        lacking = self._lacking(entry)
        yield from (f"{entry.files.bddl.name}: {self._assets}: {it}" for it in lacking)
        if stored and not lacking:
            yield from self._state_problems(entry.files.standard_states, state_size(definition, self._assets))

    def _lacking(self, entry: Entry) -> tuple[str, ...]:
        """Return what the assets lack of a definition, which many tasks may share."""
        path = entry.files.bddl
        if path not in self._lacks:
            task = FolderTask(self._folder.name, entry.task_id, entry.name, "", entry.files)
            self._lacks[path] = task_problems(self._assets, task, self._references)
        return self._lacks[path]

    def _definition_and_problems(self, path: Path) -> tuple[Definition | None, list[str]]:
        if path not in self._read:
            self._read[path] = self._parse(path)
        return self._read[path]

    @staticmethod
    def _parse(path: Path) -> tuple[Definition | None, list[str]]:
        if not path.is_file():
            return None, [f"{path.name} is missing"]
        try:
            definition = parse_definition(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, BadDefinitionError) as error:
            return None, [f"{path.name}: {error}"]
        return definition, [f"{path.name}: {fault}" for fault in faults_of(definition)]


def _state_problems(path: Path, size: int) -> Iterator[str]:
    """Yield what is wrong with a file of initial states for a scene whose states have `size` numbers."""
    if not path.is_file():
        yield f"{path}: its initial states are missing; --init-states sampled does without"
        return
    try:
        states = read_states(path)
    except SimulatorError as error:
        yield str(error)
        return
    if len(states) == 0:
        yield f"{path} holds no state"
    elif states.shape[1] != size:
        yield f"{path}: states have {states.shape[1]} numbers, and the scene of its definition has {size}"
    elif not np.isfinite(states).all():
        yield f"{path}: a state is not finite"


def state_size(definition: Definition, assets: Path) -> int:
    """Return the length of a flattened state of a scene: time, positions, velocities.

    The arm with its fingers has nine joints, a movable object seven positions and six velocities, and every further
    joint of an object or a fixture, like a drawer's, one of each.
    """
    inner = sum(_joints(assets, category) for category in (*definition.objects.values(), *definition.fixtures.values()))
    return 1 + 2 * _ARM_AND_FINGERS + 13 * len(definition.objects) + 2 * inner


@cache
def _joints(assets: Path, category: str) -> int:
    path = object_file(assets, category)
    return 0 if path is None else sum(it.get("type") != "free" for it in ET.parse(path).getroot().iter("joint"))


def _builders(
    usual: EnvBuilder, tasks: Sequence[FolderTask], entries: Sequence[Entry]
) -> tuple[Callable[[], LiberoEnv], ...]:
    """Return the builders of a folder's tasks, with everything else as in the builder of a task of its suite."""
    build = cast("Callable[..., LiberoEnv]", usual)
    return tuple(
        partial(build, own_task=task, perturbation=entry.variant.change)
        for task, entry in zip(tasks, entries, strict=True)
    )


def _described(folder: SuiteFolder, entries: Sequence[Entry]) -> FolderSuite:
    known = task_names(folder.base)
    bases = {it.task_id: known.index(it.variant.base) for it in entries if it.variant.base in known}
    return FolderSuite(
        path=str(folder.path),
        base=folder.base,
        num_tasks=len(folder.entries),
        episodes_per_task=PLUS_EPISODES if folder.is_plus else USUAL_EPISODES,
        sentences=tuple(_sentences(folder, entries)),
        categories={entry.task_id: entry.category for entry in entries},
        bases=bases,
    )


def _sentences(folder: SuiteFolder, entries: Sequence[Entry]) -> Iterator[str]:
    kind = "LIBERO-plus's variants of" if folder.is_plus else "a folder's in place of"
    yield f"{folder.name}: tasks are {kind} {folder.base}, from {folder.path}"
    if len(entries) < len(folder.entries):
        yield f"{folder.name}: only {len(entries)} of {len(folder.entries)} tasks"
    chosen = {entry.task_id for entry in entries}
    foreign = Counter(it.variant.foreign for it in folder.entries if it.task_id not in chosen and it.variant.foreign)
    yield from (
        f"{folder.name}: {count} task{'s' if count != 1 else ''} cannot be played: {reason}"
        for reason, count in foreign.items()
    )
    if folder.is_plus:
        yield "instructions without the names of variants, which LIBERO-plus's scripts leave in them"
    if any(it.variant.change is not None and it.variant.change.pose is not None for it in entries):
        yield "poses of the arm are set after the stored states, which undo most of them in LIBERO-plus"
