"""Files of a collection: every episode at once in a hidden folder, every task in one file when it is complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vla_rl.demos.data_errors import DemosError
from vla_rl.demos.h5_files import copy_group, new_h5, open_h5, write_datasets
from vla_rl.demos.hdf5 import RESET
from vla_rl.files import atomic_write_json
from vla_rl.types import TaskInfo

SOURCE = "vla_rl_source"  # attribute of `data`: how the file was made
PARTS = ".collecting"
SETTINGS = "settings.json"


class TaskStore:
    """Episodes of one task on disk."""

    def __init__(self, out: Path, task: TaskInfo, recorded: Mapping[str, Any]) -> None:
        """Describe them; nothing is written.

        Args:
            out: folder of the collection.
            task: the task.
            recorded: everything that determines the episodes; see `CollectOptions.recorded`.
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
        """Return whether the task is complete.

        Raises:
            DemosError: there are episodes or a file made in another way.
        """
        if self.file.exists():
            with open_h5(self.file) as handle:
                self._compare(handle["data"].attrs.get(SOURCE) if "data" in handle else None, self.file)
            return True
        settings = self._parts / SETTINGS
        if settings.exists():
            self._compare(settings.read_text(encoding="utf-8").strip(), settings)
        return False

    def _compare(self, found: str | None, file: Path) -> None:
        try:
            same = json.loads(found or "") == self._recorded
        except ValueError:
            same = False
        if not same:
            raise DemosError(
                file,
                SOURCE,
                "exists already, made in another way",
                found=found or "not written by demos collect",
                allowed=self.source,
                fix="choose another folder for --out, or delete what is there",
            )

    def begin(self) -> dict[int, bool]:
        """Create the folder of episodes. Return those that already exist: success by attempt."""
        self._parts.mkdir(parents=True, exist_ok=True)
        atomic_write_json(self._parts / SETTINGS, self._recorded)
        found = {int(part.stem): part.suffix == ".hdf5" for part in self._parts.iterdir() if part.stem.isdigit()}
        for partial in self._parts.glob(".*.partial"):  # of a process that was killed
            partial.unlink()
        return found

    def add(self, attempt: int, arrays: Mapping[str, NDArray[Any]], *, reset: Mapping[str, Any]) -> None:
        """Write a successful episode; it appears complete or not at all."""
        with new_h5(self._parts / f"{attempt:06d}.hdf5") as handle:
            demo = handle.create_group(f"data/demo_{attempt}")
            demo.attrs[RESET] = json.dumps(dict(reset))
            write_datasets(demo, arrays)

    def add_failure(self, attempt: int, *, rows: int) -> None:
        """Remember an episode that failed, which is all that is kept of it."""
        atomic_write_json(self._parts / f"{attempt:06d}.json", {"rows": rows})

    def finish(self, attempts: Mapping[int, bool]) -> None:
        """Join the successful episodes in the task's file, and remove their own files."""
        with new_h5(self.file) as handle:
            data = handle.create_group("data")
            data.attrs[SOURCE] = self.source
            data.attrs["attempts"] = len(attempts)
            for attempt in sorted(attempt for attempt, success in attempts.items() if success):
                with open_h5(self._parts / f"{attempt:06d}.hdf5") as part:
                    copy_group(part[f"data/demo_{attempt}"], data, f"demo_{attempt}")
        shutil.rmtree(self._parts)
        if not any(self._parts.parent.iterdir()):
            self._parts.parent.rmdir()
