"""Folders of task definitions as suites: which tasks they list, and where their files are.

    LIBERO-Pro    bddl_files/libero_goal_swap/NAME.bddl   init_files/libero_goal_swap/NAME.pruned_init
    LIBERO-plus   bddl_files/libero_goal/NAME.bddl        init_files/libero_goal/BASE.pruned_init
                                                          init_files/libero_newobj/libero_goal/NAME.pruned_init
                  benchmark/task_classification.json      its list of tasks, of which many are names alone

The suite is the folder of BDDL files. Initial states may also lie beside them. Without a list the files are the tasks.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.envs.libero.folders.variant_names import Variant, parse_variant
from vla_rl.envs.libero.suites import TaskFiles, task_names, wheel_root
from vla_rl.libero_suites import MAIN_SUITES, SUITES

LIST_FILES = ("task_classification.json", "libero_suite_task_map.py")
_SHOWN = 40  # problems in one error
_DIGITS = 8  # of the digest in a folder's name


@dataclass(frozen=True, slots=True)
class Entry:
    """Task in a folder's list."""

    task_id: int  # position in the list
    name: str
    category: str  # of LIBERO-plus; empty elsewhere
    variant: Variant
    files: TaskFiles  # where they are, or should be


@dataclass(frozen=True, slots=True)
class SuiteFolder:
    """Folder of task definitions."""

    path: Path
    base: str  # suite of LIBERO that it was made from
    name: str  # name of the folder, and a digest of its files: results of other contents are never mixed
    entries: tuple[Entry, ...]

    @property
    def is_plus(self) -> bool:
        """Return whether it holds LIBERO-plus's variants."""
        return any(entry.variant.is_plus for entry in self.entries)


def names_folder(suite: str) -> bool:
    """Return whether `--suite` got a folder, not the name of a suite."""
    return suite not in SUITES and ("/" in suite or Path(suite).is_dir())


def problems_text(path: Path, problems: Sequence[str], *, fix: str) -> str:
    """Return one text for all problems of a folder."""
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "\n".join([f"--suite: {path}: {count}", *(f"  {it}" for it in problems[:_SHOWN]), *more, fix])


def read_suite_folder(path: Path) -> SuiteFolder:
    """Read what a folder lists; definitions and states are not opened, except for a digest.

    Raises:
        ValueError: it is no folder of definitions, or its list is wrong; names every fault.
    """
    path = path.expanduser()
    definitions = sorted(path.glob("*.bddl")) if path.is_dir() else []
    if not definitions:
        raise ValueError(f"--suite: {path} {_what_it_is(path)}")
    path = path.resolve()
    listed, list_file = _listed(path)
    names = [name for name, _ in listed] if listed else [file.stem for file in definitions]
    problems, entries = [], []
    if repeated := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        problems.append(f"{list_file}: lists {', '.join(repeated[:3])} more than once")
    variants = {}
    for name in names:
        try:
            variants[name] = parse_variant(name)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError(problems_text(path, problems, fix="Fix the names"))
    base = _base(path, [variant.base for variant in variants.values()])
    if not listed:
        names = sorted(names, key=lambda name: (_place(base, name), name))
    categories = dict(listed)
    for task_id, name in enumerate(names):
        variant = variants[name]
        files = TaskFiles(
            bddl=path / f"{variant.file}.bddl",
            standard_states=_states(path, base, variant),
            all_states=_states(path, base, variant).with_suffix(".init"),
        )
        category = categories.get(name) or variant.category
        entries.append(Entry(task_id=task_id, name=name, category=category, variant=variant, files=files))
    digest = _digest([*definitions, *dict.fromkeys(entry.files.standard_states for entry in entries)], names)
    return SuiteFolder(path=path, base=base, name=f"{path.name}-{digest}", entries=tuple(entries))


def _what_it_is(path: Path) -> str:
    """Explain why a path is refused, and name the folders that were probably meant."""
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        return f"{state}; give one of {', '.join(SUITES)}, or a folder of BDDL files"
    found = sorted({file.parent for file in path.glob("*/*.bddl")} | {file.parent for file in path.glob("*/*/*.bddl")})
    hints = "".join(f"\n  {folder} is one" for folder in found[:10])
    return f"holds no BDDL files; give a folder that does{hints}"


def _base(path: Path, bases: Iterable[str]) -> str:
    """Return the suite that a folder was made from: by its name, else by its tasks.

    Raises:
        ValueError: neither tells.
    """
    for suite in SUITES:
        if path.name == suite or path.name.startswith(f"{suite}_"):
            return suite
    tasks = set(bases)
    found = [suite for suite in (*MAIN_SUITES, "libero_90") if tasks & set(task_names(suite))]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"--suite: {path} does not say which suite its tasks were made from, whose horizon and statistics they need; "
        f"begin its name with one of {', '.join(SUITES)}, like {MAIN_SUITES[0]}_{path.name}"
    )


def _place(base: str, name: str) -> int:
    """Return the place of a name in the benchmark's order; others come last."""
    known = task_names(base)
    return known.index(name) if name in known else len(known)


def _root(path: Path) -> Path:
    """Return the folder in which `bddl_files`, `init_files` and `benchmark` lie beside each other."""
    return path.parent.parent


def _listed(path: Path) -> tuple[list[tuple[str, str]], Path]:
    """Return names and categories of a folder's tasks by its list, and the file of that; none without a list.

    Raises:
        ValueError: a list cannot be read.
    """
    for file in (folder / name for folder in (path, _root(path) / "benchmark") for name in LIST_FILES):
        if file.is_file():
            try:
                found = _classified(file, path.name) if file.suffix == ".json" else _mapped(file, path.name)
            except (ValueError, SyntaxError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"--suite: {file} is no list of tasks: {type(error).__name__}: {error}. Expected for each suite a "
                    f"list of {'objects with id, name and category' if file.suffix == '.json' else 'names'}"
                ) from error
            if found:
                return found, file
    return [], path


def _classified(file: Path, suite: str) -> list[tuple[str, str]]:
    """Read LIBERO-plus's list: for each suite objects with `id` (from 1), `name` and `category`."""
    entries: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")).get(suite, [])
    found = [(str(entry["name"]), str(entry["category"])) for entry in sorted(entries, key=lambda it: int(it["id"]))]
    if any("/" in name for name, _ in found):
        raise ValueError("a name is a path")
    return found


def _mapped(file: Path, suite: str) -> list[tuple[str, str]]:
    """Read `libero_task_map`, a dictionary of names by suite, without running the file."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "libero_task_map":
            names = ast.literal_eval(statement.value).get(suite, [])
            if any("/" in name for name in names):
                raise ValueError("a name is a path")
            return [(name, "") for name in names]
    return []


def _states(path: Path, base: str, variant: Variant) -> Path:
    """Return the file of a task's initial states: the first that exists, else where it should be."""
    tree = _root(path) / "init_files"
    name = f"{variant.file if variant.own_states or not variant.is_plus else variant.base}.pruned_init"
    places = [path / name, tree / path.name / name, tree / "libero_newobj" / path.name / name]
    if variant.is_plus and not variant.own_states:  # these start from LIBERO's own states
        places.append(wheel_root() / "init_files" / base / name)
    return next((place for place in places if place.is_file()), places[1] if tree.is_dir() else places[0])


def _digest(files: Iterable[Path], names: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(names).encode())
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()[:_DIGITS]
