"""Files of a collection: every episode at once in a hidden folder, every task in one file when it is complete.

A task's file holds its first attempts, up to the last success that was asked for. If more are asked for later, the
episodes of the file count, further ones are collected beside it, and a new file replaces it when it is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from vla_rl.demos.attributes import SOURCE, write_counts
from vla_rl.demos.data_errors import DemosError
from vla_rl.demos.h5_files import copy_group, new_h5, open_h5, write_datasets
from vla_rl.demos.hdf5 import RESET
from vla_rl.files import ASIDE, atomic_write_json
from vla_rl.types import TaskInfo

PARTS = ".collecting"
SETTINGS = "settings.json"
ATTEMPTS = "attempts"  # attribute of `data`: episodes that were played for the file, failures included
EPISODES = "episodes"  # entry of what is recorded: how many were asked for, which changes none of them


class TaskStore:
    """Episodes of one task on disk."""

    def __init__(self, out: Path, task: TaskInfo, recorded: Mapping[str, Any]) -> None:
        """Describe them; nothing is written.

        Args:
            out: folder of the collection.
            task: the task.
            recorded: everything that determines the episodes and how many there are; see `CollectOptions.recorded`.
        """
        self.task = task
        self.file = out / f"{task.name}_demo.hdf5"
        self._recorded = dict(recorded)
        self._parts = out / PARTS / task.name

    @property
    def source(self) -> str:
        """Return the attribute that tells how the file was made."""
        return json.dumps(self._recorded)

    def check(self) -> bool:
        """Return whether the task has at least as many episodes as are asked for.

        Raises:
            DemosError: there are episodes or a file made in another way.
        """
        stored = self.stored()
        settings = self._parts / SETTINGS
        if settings.exists():
            self._compare(settings.read_text(encoding="utf-8").strip(), settings)
        return sum(stored.values()) >= int(self._recorded[EPISODES])

    def stored(self) -> dict[int, bool]:
        """Return the attempts that the task's file counts, with their success; none if there is no file.

        Raises:
            DemosError: the file was made in another way.
        """
        if not self.file.exists():
            return {}
        with open_h5(self.file) as handle:
            attributes = handle["data"].attrs if "data" in handle else {}
            self._compare(attributes.get(SOURCE), self.file)
            succeeded = {int(name.removeprefix("demo_")) for name in handle["data"]}
            return {attempt: attempt in succeeded for attempt in range(int(attributes[ATTEMPTS]))}

    def _compare(self, found: str | None, file: Path) -> None:
        if _without_number(found) != _without_number(self.source):
            raise DemosError(
                file,
                SOURCE,
                "exists already, made in another way",
                found=found or "not written by demos collect",
                allowed=f"{self.source}, with any number of episodes",
                fix="choose another folder for --out, or delete what is there",
            )

    def begin(self) -> dict[int, bool]:
        """Create the folder of episodes. Return the attempts that were played already, with their success."""
        self._parts.mkdir(parents=True, exist_ok=True)
        atomic_write_json(self._parts / SETTINGS, self._recorded)
        for left in (*self._parts.glob(f"{ASIDE}*"), *self.file.parent.glob(f"{ASIDE}{self.file.name}.*")):
            left.unlink()  # of a process that was killed
        return self.parts() | self.stored()

    def parts(self) -> dict[int, bool]:
        """Return the attempts that have files of their own, with their success."""
        if not self._parts.is_dir():
            return {}
        return {int(part.stem): part.suffix == ".hdf5" for part in self._parts.iterdir() if part.stem.isdigit()}

    def add(self, attempt: int, arrays: Mapping[str, NDArray[Any]], *, reset: Mapping[str, Any]) -> None:
        """Write a successful episode; it appears complete or not at all."""
        with new_h5(self._part(attempt)) as handle:
            demo = handle.create_group(f"data/demo_{attempt}")
            demo.attrs[RESET] = json.dumps(dict(reset))
            write_datasets(demo, arrays)

    def add_failure(self, attempt: int, *, rows: int) -> None:
        """Remember an episode that failed, which is all that is kept of it."""
        atomic_write_json(self._parts / f"{attempt:06d}.json", {"rows": rows})

    def finish(self, attempts: Mapping[int, bool], environment: Mapping[str, str] = MappingProxyType({})) -> None:
        """Join the successful episodes in the task's file, and remove their own files.

        Args:
            attempts: the first ones, without a gap, up to the last success; see `counted`.
            environment: attributes that tell other programs which task this is; see `environment_of`.
        """
        before = self.stored()
        with ExitStack() as stack:
            old = stack.enter_context(open_h5(self.file)) if before else None
            data = stack.enter_context(new_h5(self.file)).create_group("data")
            data.attrs[SOURCE] = self.source
            data.attrs[ATTEMPTS] = len(attempts)
            data.attrs.update(environment)
            for attempt in sorted(attempt for attempt, success in attempts.items() if success):
                name = f"demo_{attempt}"
                if old is not None and attempt in before:
                    copy_group(old["data"][name], data, name)
                    continue
                with open_h5(self._part(attempt)) as part:
                    copy_group(part["data"][name], data, name)
            write_counts(data)  # also of episodes that an earlier release wrote without
        self.discard(attempts)

    def discard(self, attempts: Collection[int]) -> None:
        """Remove the files of attempts that the task's file counts; those of later attempts stay, for more episodes."""
        if not self._parts.is_dir():
            return
        for attempt in attempts:
            for suffix in (".hdf5", ".json"):
                self._part(attempt).with_suffix(suffix).unlink(missing_ok=True)
        if self.parts():
            return
        shutil.rmtree(self._parts)
        if not any(self._parts.parent.iterdir()):
            self._parts.parent.rmdir()

    def _part(self, attempt: int) -> Path:
        return self._parts / f"{attempt:06d}.hdf5"


def counted(attempts: Mapping[int, bool], episodes: int) -> dict[int, bool] | None:
    """Return the attempts that make up a task's file; None if one is missing, or too few have succeeded.

    Args:
        attempts: those that were played, with their success, in any order and with gaps.
        episodes: successes that are asked for.
    """
    found: dict[int, bool] = {}
    while sum(found.values()) < episodes:
        attempt = len(found)
        if attempt not in attempts:
            return None
        found[attempt] = attempts[attempt]
    return found


def _without_number(recorded: str | None) -> dict[str, Any] | None:
    """Return what was recorded, except the number of episodes; None if it is something else."""
    try:
        settings = json.loads(recorded or "")
    except ValueError:
        return None
    return {name: value for name, value in settings.items() if name != EPISODES} if isinstance(settings, dict) else None
