"""Suites, tasks and prompts, read from the files of the installed hf-libero without importing it.

The order of tasks is the benchmark's own (`libero_suite_task_map.py`). The prompt is the file's name, as in the
training data of every published policy; the sentence inside a BDDL file differs in 25 of 40 tasks.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vla_rl.errors import SimulatorError
from vla_rl.libero_suites import SUITES
from vla_rl.types import TaskInfo

INSTALL_HINT = (
    "install it without its dependency list (which would replace torch's companions): "
    "pip install --no-deps hf-libero==0.1.4 bddl==1.0.1 robosuite==1.4.0, and pip install 'vla-rl[libero]' for the rest"
)


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """Files of one task."""

    bddl: Path
    standard_states: Path
    all_states: Path  # may not exist (Goal has none)


@dataclass(frozen=True, slots=True)
class FolderTask(TaskInfo):
    """Task in a folder of the user, which brings its own files."""

    files: TaskFiles


@cache
def wheel_root() -> Path:
    """Return the folder of the installed `libero.libero` package.

    Raises:
        SimulatorError: hf-libero is not installed, or without its data.
    """
    spec = importlib.util.find_spec("libero")
    for location in (spec.submodule_search_locations or []) if spec else []:
        root = Path(location) / "libero"
        if (root / "bddl_files").is_dir() and (root / "init_files").is_dir():
            return root
    found = "another package named 'libero' without task files" if spec else "nothing"
    raise SimulatorError(f"hf-libero is not installed: found {found}; {INSTALL_HINT}")


@cache
def task_names(suite: str) -> tuple[str, ...]:
    """Return the file names of a suite's tasks, in the benchmark's order.

    Raises:
        SimulatorError: the suite is unknown, or hf-libero is missing.
    """
    if suite not in SUITES:
        raise SimulatorError(f"suite {suite!r} does not exist; choose one of {', '.join(SUITES)}")
    source = wheel_root() / "benchmark" / "libero_suite_task_map.py"
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "libero_task_map":
            return tuple(ast.literal_eval(statement.value)[suite])
    raise SimulatorError(f"{source} holds no 'libero_task_map': this hf-libero is not 0.1.4; {INSTALL_HINT}")


def prompt(name: str) -> str:
    """Return a task's language from its file name; the suites of LIBERO-100 have a scene prefix."""
    head, separator, tail = name.partition("_SCENE")
    if separator and head.isupper():
        name = tail.partition("_")[2]
    return name.replace("_", " ")


def libero_tasks(suite: str) -> list[TaskInfo]:
    """Return the tasks of a suite in the benchmark's order. Cheap: imports neither the simulator nor torch."""
    return [
        TaskInfo(suite=suite, task_id=task_id, name=name, language=prompt(name))
        for task_id, name in enumerate(task_names(suite))
    ]


def libero_task(suite: str, task_id: int) -> TaskInfo:
    """Return one task of a suite.

    Raises:
        SimulatorError: the suite has no such task.
    """
    tasks = libero_tasks(suite)
    if not 0 <= task_id < len(tasks):
        raise SimulatorError(f"task {task_id} does not exist: {suite} has tasks 0..{len(tasks) - 1}")
    return tasks[task_id]


def task_files(task: TaskInfo) -> TaskFiles:
    """Return the paths of a task's definition and initial states, in the wheel unless it brings its own."""
    if isinstance(task, FolderTask):
        return task.files
    states = wheel_root() / "init_files" / task.suite
    return TaskFiles(
        bddl=wheel_root() / "bddl_files" / task.suite / f"{task.name}.bddl",
        standard_states=states / f"{task.name}.pruned_init",
        all_states=states / f"{task.name}.init",
    )
