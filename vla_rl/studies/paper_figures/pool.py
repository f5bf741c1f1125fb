"""Finished runs of one or several Meta-World studies that belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_rl.errors import UserError
from vla_rl.studies.metaworld.grid import Grid, StudyRun
from vla_rl.studies.metaworld.paper_figure import PaperFigure
from vla_rl.studies.metaworld.results import RunResult, RunTable, read_results
from vla_rl.studies.metaworld.runner import read_study, shared_by_runs
from vla_rl.studies.study_file import differences


@dataclass(frozen=True, slots=True)
class Pool:
    """Runs with one recipe and one budget, from one or several folders."""

    grids: Mapping[Path, Grid]  # by folder
    planned: int  # runs of all grids, those of several grids once
    results: RunTable  # ordered as in the grids, stale before fresh
    broken: Sequence[str]  # a sentence about each finished run that cannot be read
    repeated: Sequence[str]  # a sentence about each study of which runs were left out because another has them too

    @property
    def first(self) -> Grid:
        """Return the grid of the first study; all have the same budget, and equal recipes."""
        return next(iter(self.grids.values()))

    @property
    def seeds(self) -> int:
        """Return the largest number of seeds that a study has."""
        return max(grid.seeds for grid in self.grids.values())

    def home(self, run: StudyRun) -> Path | None:
        """Return the folder of a study that has a run in its grid, or would have it with more seeds; None if none."""
        fitting = [
            (run.seed >= grid.seeds, folder)
            for folder, grid in self.grids.items()
            if run.task in grid.tasks and run.surrogate in grid.surrogates and run.regime in grid.regimes
        ]
        return min(fitting, key=lambda each: each[0])[1] if fitting else None

    def missing(self, figure: PaperFigure) -> list[StudyRun]:
        """Return the runs that a figure wants and that are not there, with as many seeds as a study has."""
        there = {result.run for result in self.results}
        wanted = (StudyRun(*cell, seed) for cell in figure.wanted(self.results) for seed in range(self.seeds))
        return [run for run in wanted if run not in there]


@dataclass(frozen=True, slots=True)
class _Study:
    folder: Path
    grid: Grid
    base: str  # recipe (YAML) that it began with
    results: RunTable
    broken: list[str]


def read_pool(folders: Sequence[Path]) -> Pool:
    """Read the finished runs of all studies; of a run that several have, the first study's.

    Raises:
        UserError: a folder has no Meta-World study or none of its runs can be read, or the studies differ in recipe or
            budget. Says so of every folder at once.
    """
    studies: list[_Study] = []
    problems: list[str] = []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        try:
            studies.append(_Study(folder, *read_study(folder), *_read_runs(folder)))
        except ValueError as error:
            problems.append(str(error))
    problems += [problem for study in studies[1:] for problem in _differences(studies[0], study)]
    if problems:
        raise UserError("\n".join(problems))
    results: dict[StudyRun, RunResult] = {}
    repeated: list[str] = []
    for study in studies:
        twice = sum(result.run in results for result in study.results)
        if twice:
            repeated.append(f"{twice} runs of {study.folder} are also in a study before it, and only those are shown.")
        results = {result.run: result for result in study.results} | results
    plan = list(dict.fromkeys(run for study in studies for run in study.grid.runs()))
    return Pool(
        grids={study.folder: study.grid for study in studies},
        planned=len({*plan, *results}),
        results=RunTable(sorted(results.values(), key=_place(plan))),
        broken=[f"{study.folder}: {sentence}" for study in studies for sentence in study.broken],
        repeated=repeated,
    )


def _place(plan: Sequence[StudyRun]) -> Callable[[RunResult], tuple[bool, int]]:
    """Return a key that sorts stale before fresh, and otherwise by the plan."""
    place = {run: index for index, run in enumerate(plan)}
    return lambda result: (result.run.regime != "stale", place.get(result.run, len(place)))


def _read_runs(folder: Path) -> tuple[RunTable, list[str]]:
    try:
        return read_results(folder)
    except ValueError as error:
        raise UserError(
            f"{error}; continue the study with the command that began it, `vla-rl study metaworld` with the same "
            "options and folder"
        ) from error


def _differences(first: _Study, second: _Study) -> list[str]:
    """Return a sentence if the runs of two studies do not belong in one figure."""
    found = differences(*(shared_by_runs(study.folder, study.grid, study.base) for study in (first, second)))
    told = [f"{theirs} optimizer steps instead of {ours}" for ours, theirs in found.settings.values()]
    told += [f"other values of {', '.join(found.fields)}"] if found.fields else []
    if not told:
        return []
    return [
        f"{second.folder}: its runs have {' and '.join(told)}, unlike those of {first.folder}, and do not belong in "
        "one figure; draw each study by itself, into a folder of its own"
    ]
