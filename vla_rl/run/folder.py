"""Folder of a run: protects other runs from being overwritten, and records the run's provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from shlex import quote
from typing import Any

from vla_rl.files import atomic_write_text, read_json_object, rename
from vla_rl.learner.checkpoint import Search, find_latest
from vla_rl.learner.checkpoint_folder import CHECKPOINTS
from vla_rl.recipe import Recipe, SupervisedRecipe
from vla_rl.reporting.manifest import MANIFEST_FILE, earlier_starts, write_manifest
from vla_rl.reporting.metrics_file import METRICS_FILE
from vla_rl.reporting.run_folder import RECIPE_FILE
from vla_rl.run.folder_lock import check_name, claim_folder
from vla_rl.run.plan import TrainingPlan


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run."""

    path: Path
    verb: str = "train"  # of the command line, that makes such runs

    @classmethod
    def open(cls, path: Path, *, resume: bool, verb: str = "train") -> RunFolder:
        """Check that a run of a verb may write here. Writes nothing.

        Raises:
            ValueError: the folder holds another run and `resume` is off, or `path` is a file or no text.
        """
        check_name(path, option="--run-dir")
        if path.exists() and not path.is_dir():
            raise ValueError(f"--run-dir: {path} is a file; a run needs a folder, choose another path")
        if not resume and (path / RECIPE_FILE).exists():
            raise ValueError(
                f"--run-dir: {path} already holds a run, and nothing is overwritten. Add --resume to continue it, or "
                "choose another folder with name=NAME or --run-dir"
            )
        remains = [] if resume else _remains_of_a_run(path)
        if remains:  # a later --resume would go on from the other run's checkpoint
            raise ValueError(
                f"--run-dir: {path} holds {' and '.join(remains)} of another run without its {RECIPE_FILE}, as half a "
                f"copy does. Put that back and add --resume, or choose another folder with --run-dir"
            )
        return cls(path, verb)

    def claimed(self) -> AbstractContextManager[None]:
        """Create the folder and lock it against other runs; see `claim_folder`."""
        return claim_folder(self.path, option="--run-dir")

    def find_start(self) -> Search:
        """Find the checkpoint that a resumed run starts from. None if the run died before its first. Writes nothing.

        Raises:
            ValueError: there were checkpoints, and none of them is complete.
        """
        search = find_latest(self.path)
        if search.newest is None and search.damaged:
            recipe, other = quote(str(self.path / RECIPE_FILE)), quote(f"{self.path}-anew")
            anew = f"vla-rl {self.verb} {recipe} --run-dir {other}"
            lines = "".join(f"\n  {line.removesuffix('; it is passed over')}" for line in search.damaged)
            raise ValueError(
                f"--resume: no checkpoint of {self.path} is whole, and nothing was changed:{lines}\n"
                f"Restore the files from a copy, or start again in another folder: {anew}"
            )
        return search

    def set_metrics_aside(self) -> Path | None:
        """Rename the log points of a run that starts again; return their new path, or None if there are none."""
        metrics = self.path / METRICS_FILE
        if not metrics.is_file() or metrics.stat().st_size == 0:
            return None
        names = (self.path / f"metrics.before_restart_{number}.jsonl" for number in count(1))
        aside = next(path for path in names if not path.exists())
        rename(metrics, aside)
        return aside

    @property
    def logs(self) -> Path:
        """Return the folder of the processes' logs."""
        return self.path / "logs"

    def write_records(
        self,
        recipe: Recipe | SupervisedRecipe,
        *,
        assets: Mapping[str, Any],
        deviations: Sequence[str],
        extra: Mapping[str, Any],
        after_optimizer_step: int,
    ) -> None:
        """Write the resolved recipe and the manifest, which keeps earlier starts; arguments as `write_manifest`."""
        self.path.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.path / RECIPE_FILE, recipe.dump_yaml())
        write_manifest(
            self.path / MANIFEST_FILE,
            recipe=recipe.model_dump(mode="json", by_alias=True),
            seeds={"run": recipe.seed},
            assets=assets,
            deviations=deviations,
            extra=extra,
            after_optimizer_step=after_optimizer_step,
            earlier=self._earlier_starts(before=after_optimizer_step),
        )

    def recorded_recipe(self) -> dict[str, Any]:
        """Return the recipe that last trained the run, as plain values; empty if its manifest is missing or broken."""
        try:
            return dict(read_json_object(self.path / MANIFEST_FILE).get("recipe") or {})
        except ValueError:
            return {}

    def _earlier_starts(self, *, before: int) -> list[dict[str, Any]]:
        try:
            return earlier_starts(read_json_object(self.path / MANIFEST_FILE), before=before) if before else []
        except ValueError:  # missing or broken: nobody can tell any more, and the run can go on
            return []


def _remains_of_a_run(path: Path) -> list[str]:
    """Return which files in a folder only a run writes, log points and checkpoints."""
    metrics = path / METRICS_FILE
    has_points = metrics.is_file() and metrics.stat().st_size > 0
    has_checkpoints = any((path / CHECKPOINTS).glob("optimizer_step_*"))
    return [name for name, there in ((METRICS_FILE, has_points), (CHECKPOINTS, has_checkpoints)) if there]


def assets_of(plan: TrainingPlan) -> dict[str, Any]:
    """Return what a training was made from, for its manifest."""
    simulator = plan.env.simulator
    return {
        "checkpoint": getattr(plan.recipe.policy, "checkpoint", None),
        "statistics": plan.policy.statistics,
        "simulator_assets": None if simulator is None else f"{simulator.assets.kind}: {simulator.assets.folder}",
        "init_states": getattr(plan.recipe.env, "init_states", None),
        "gl": None if simulator is None else simulator.gl,
    }
