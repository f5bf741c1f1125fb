"""Everything that can be checked before a collection starts a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_rl.collection.collecting import bytes_per_episode, check_collection
from vla_rl.collection.options import CollectOptions
from vla_rl.collection.store import TaskStore
from vla_rl.demos.h5_files import check_installed
from vla_rl.envs.libero.asset_files import check_task_assets
from vla_rl.envs.libero.check import check_simulator
from vla_rl.envs.libero.expert import check_expert
from vla_rl.envs.libero.suites import libero_tasks
from vla_rl.errors import SimulatorError, UserError
from vla_rl.libero_suites import SUITES
from vla_rl.section import Problem


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """Collection that can start."""

    options: CollectOptions
    stores: list[TaskStore]
    complete: int  # tasks whose files are there already
    warnings: tuple[str, ...]

    def describe(self, workers: int) -> str:
        """Return what would be done, in words."""
        options = self.options
        found = {store.task.name: sum(store.stored().values()) for store in self.stores}
        rest = sum(max(0, options.episodes - number) for number in found.values())
        size = rest * bytes_per_episode(options)
        lines = [
            f"{options.suite}: {options.episodes} episodes of each of {len(self.stores)} tasks, {self.complete} of "
            f"which are complete; {workers} processes, about {size / 1e9:.1f} GB",
            f"{options.init_states} initial states, {options.physics} physics, {options.image_size} pixels",
            *(
                f"{name}: {_what_becomes_of(number, options.episodes)}"
                for name, number in found.items()
                if number not in (0, options.episodes)
            ),
            *self.warnings,
        ]
        return "\n".join(lines)


def _what_becomes_of(found: int, asked: int) -> str:
    if found > asked:
        return f"has {found} episodes, more than the {asked} asked for, and keeps them"
    return f"has {found} of {asked} episodes; {asked - found} will be added"


def tasks_of(suite: str, ids: Sequence[int] | None) -> tuple[int, ...]:
    """Return the tasks to collect, by id.

    Args:
        suite: name of the suite.
        ids: tasks of the suite; None for all of them.

    Raises:
        UserError: the suite does not exist, or does not have one of the tasks.
    """
    if suite not in SUITES:
        raise UserError(str(Problem("--suite", "unknown", suite, "libero_spatial, libero_object")))
    known = range(SUITES[suite].num_tasks)
    if ids is None:
        return tuple(known)
    unknown = [task for task in ids if task not in known]
    if unknown:
        found, allowed = ", ".join(map(str, unknown)), f"0 to {known[-1]}, or all"
        raise UserError(str(Problem("--tasks", f"{suite} has no such task", found, allowed, "--tasks 0,1")))
    return tuple(ids)


def prepare(options: CollectOptions, out: Path) -> CollectionPlan:
    """Check everything that would stop the collection.

    Raises:
        UserError: everything that must be changed; nothing was started or written.
    """
    known = libero_tasks(options.suite)
    tasks = tuple(known[task] for task in options.tasks)
    check_installed()
    simulator = check_simulator(gl=options.gl, assets=options.assets)
    problems, able = [], []
    for task in tasks:
        try:
            check_expert(task)
            able.append(str(task.task_id))
        except SimulatorError as error:
            problems.append(str(error))
    if problems and able:
        problems.append(f"Leave these tasks out: --tasks {','.join(able)}")
    for task in tasks:
        try:
            check_task_assets(simulator.assets, task)
        except SimulatorError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    stores = check_collection(options, tasks, out, assets=simulator.assets.kind)
    warnings = list(simulator.warnings)
    if simulator.assets.kind == "proxy":
        warnings.append("built-in proxy assets instead of LIBERO's: other pictures")
    return CollectionPlan(options, stores, sum(store.check() for store in stores), tuple(warnings))
