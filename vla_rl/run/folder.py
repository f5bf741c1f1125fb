"""The folder of a run: refuses to write over another run, records what the run was made with."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.reporting.files import atomic_write_text
from vla_rl.reporting.manifest import MANIFEST_FILE, write_manifest
from vla_rl.run.plan import Plan

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @classmethod
    def open(cls, path: Path, *, resume: bool) -> RunFolder:
        """Check that a run may write here. Writes nothing.

        Raises:
            ValueError: the folder holds another run and `resume` is off, or `path` is a file.
        """
        if path.exists() and not path.is_dir():
            raise ValueError(f"--run-dir: {path} is a file; a run needs a folder, choose another path")
        if not resume and (path / RECIPE_FILE).exists():
            raise ValueError(
                f"--run-dir: {path} holds a run already and nothing is written over it. "
                "Add --resume to go on with it, or choose another folder with --run-dir"
            )
        return cls(path)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder and hold it against other runs; the kernel lets go of it when this process dies.

        Raises:
            ValueError: it cannot be made or written to, or a run that lives is writing there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--run-dir: {self.path} cannot be made ({error}); choose another folder") from error
        if not os.access(self.path, os.W_OK):
            raise ValueError(f"--run-dir: {self.path} cannot be written to; choose another folder")
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            _lock(descriptor, self.path)
            yield
        finally:
            os.close(descriptor)

    @property
    def logs(self) -> Path:
        """Where every process of the run logs."""
        return self.path / "logs"

    def write_records(self, plan: Plan, *, num_ranks: int, resumed_from: str | None) -> None:
        """Write the resolved recipe and the manifest."""
        self.path.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.path / RECIPE_FILE, plan.recipe.dump_yaml())
        write_manifest(
            self.path / MANIFEST_FILE,
            recipe=plan.recipe.model_dump(mode="json", by_alias=True),
            seeds={"run": plan.recipe.seed},
            assets=_assets(plan),
            deviations=plan.env.deviations,
            extra={"num_ranks": num_ranks, "device": plan.device, "resumed_from": resumed_from},
        )


def _lock(descriptor: int, path: Path) -> None:
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    except OSError:  # a network file system without locks
        return
    raise ValueError(
        f"--run-dir: another run is writing to {path} now. Wait for its end, or choose another folder with --run-dir"
    )


def _assets(plan: Plan) -> dict[str, Any]:
    simulator = plan.env.simulator
    return {
        "checkpoint": getattr(plan.recipe.policy, "checkpoint", None),
        "simulator_assets": None if simulator is None else f"{simulator.assets.kind}: {simulator.assets.folder}",
        "init_states": getattr(plan.recipe.env, "init_states", None),
        "gl": None if simulator is None else simulator.gl,
    }
