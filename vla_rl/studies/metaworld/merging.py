"""Folders of one Meta-World study that several machines filled, brought together in one.

Finished runs are copied, each complete or not at all, so that an interrupted merge is finished by the same command.
Unfinished ones stay where they are: their machine, or a study in the new folder, makes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_rl.errors import UserError, preflight
from vla_rl.files import atomic_write_json, folder_written_aside, read_json_object
from vla_rl.reporting.metrics_file import METRICS_FILE, read_metrics
from vla_rl.run.folder_lock import claim_folder
from vla_rl.studies.metaworld.grid import Grid, joined
from vla_rl.studies.metaworld.results import read_run
from vla_rl.studies.metaworld.runner import (
    BASELINES_FILE,
    RUNS,
    finished_runs,
    read_study,
    shared_by_runs,
    unfinished_runs,
    write_settings,
)
from vla_rl.studies.study_file import STUDY_FILE, differences

TIMES = ("seconds", "perf/")  # beginnings of the metrics that differ between two machines even if all else is the same


@dataclass(frozen=True, slots=True)
class Merged:
    """Outcome of a merge."""

    copied: int  # runs
    kept: int  # that were in the new folder before
    unfinished: Mapping[Path, Sequence[str]]  # names of the runs that were left, by folder
    broken: Sequence[str]  # a sentence about each finished run that was left because it cannot be read
    planned: int  # runs of the whole study


def merge_studies(folders: Sequence[Path], out: Path) -> Merged:
    """Copy the finished runs of several folders of one study to another, which may be one of them.

    Tasks, surrogates, regimes and seeds may differ: the study in the new folder has all of them.

    Args:
        folders: folders of studies.
        out: folder of the whole study; created if it is missing.

    Raises:
        UserError: the folders hold studies of another kind or with another budget or recipe, or two of them have
            different results for one run, or a run of the new folder cannot be read. Nothing was copied.
    """
    sources = list({folder.resolve(): folder for folder in folders if folder.resolve() != out.resolve()}.values())
    with claim_folder(out, option="--out"):
        studies = [out, *sources] if (out / STUDY_FILE).exists() else sources
        if not studies:
            raise UserError(f"{out}: there is no study in it, and no other folder was named")
        grid, base = _plan_of_all(studies)
        runs, broken = _runs_of_all(studies, out)
        write_settings(out, grid, base=base)
        _merge_baselines(studies, out)
        copied = [name for name, folder in runs.items() if folder.parent.parent != out]
        for name in copied:
            with preflight(), folder_written_aside(out / RUNS / name) as aside:
                shutil.copytree(runs[name], aside, symlinks=True, dirs_exist_ok=True)
    left = {source: [name for name in unfinished_runs(source) if name not in runs] for source in sources}
    return Merged(
        copied=len(copied),
        kept=len(runs) - len(copied),
        unfinished={source: names for source, names in left.items() if names},
        broken=broken,
        planned=len(grid.runs()),
    )


def _plan_of_all(studies: Sequence[Path]) -> tuple[Grid, str]:
    """Return the grid with the runs of all studies, and the recipe (YAML) that they share.

    Raises:
        UserError: a folder holds no such study, or one that differs from the first in more than its axes.
    """
    with preflight():
        plans = [read_study(study) for study in studies]
        shared = [shared_by_runs(study, *plan) for study, plan in zip(studies, plans, strict=True)]
    grid, base = plans[0]
    problems = []
    for study, (other, _), its in zip(studies[1:], plans[1:], shared[1:], strict=True):
        found = differences(shared[0], its)
        problems += [
            f"{studies[0]} has {ours} optimizer steps per run, {study} {theirs}"
            for ours, theirs in found.settings.values()
        ]
        if found.fields:
            problems.append(f"{studies[0]} and {study} began with recipes that differ in {', '.join(found.fields)}")
        grid = joined(grid, other)
    if problems:
        raise UserError("\n  ".join(["the runs of these studies would not be comparable; merge them apart", *problems]))
    return grid, base


def _runs_of_all(studies: Sequence[Path], out: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of every finished run by its name, and a sentence about each one that cannot be read.

    Of equal results the first study's folder is returned.

    Raises:
        UserError: two studies have different results for a run, or one in `out` cannot be read.
    """
    found: dict[str, Path] = {}
    broken: list[str] = []
    problems: list[str] = []
    for study in studies:
        for folder in finished_runs(study):
            try:
                read_run(folder)
            except (ValueError, OSError) as error:
                (problems if study == out else broken).append(f"{folder.name}: {error}")
                continue
            first = found.setdefault(folder.name, folder)
            if first != folder and _outcome(first) != _outcome(folder):
                problems.append(f"{first} and {folder} have different results, not only times")
    if problems:
        raise UserError(
            "\n  ".join(["a run has one result, and that can be read; move these folders elsewhere", *problems])
        )
    return found, broken


def _outcome(folder: Path) -> list[dict[str, float]]:
    """Return a run's metrics without what depends on the machine's speed."""
    records = read_metrics(folder / METRICS_FILE)
    return [{name: record[name] for name in record if not name.startswith(TIMES)} for record in records]


def _merge_baselines(studies: Sequence[Path], out: Path) -> None:
    """Write the returns of random actions that any of the studies has measured; of two for a task the first."""
    known: dict[str, float] = {}
    for path in (study / BASELINES_FILE for study in reversed(studies)):
        with preflight():
            known |= read_json_object(path) if path.exists() else {}
    if known:
        atomic_write_json(out / BASELINES_FILE, known)
