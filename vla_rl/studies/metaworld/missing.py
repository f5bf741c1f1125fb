"""Runs that a Meta-World study lacks, in a few lines: what differs in its seeds, tasks or surrogates alone is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_rl.studies.metaworld.grid import Grid, StudyRun
from vla_rl.studies.metaworld.runner import finished_runs, unfinished_runs
from vla_rl.studies.pages import Part


@dataclass(frozen=True, slots=True)
class MissingRun:
    """A run of the grid that has not finished."""

    run: StudyRun
    state: str  # not begun, unfinished or failed


def missing_runs(grid: Grid, out: Path) -> list[MissingRun]:
    """Return the runs of a grid that have not finished in a folder, in the order of the grid."""
    finished, begun = {folder.name for folder in finished_runs(out)}, unfinished_runs(out)
    return [MissingRun(run, begun.get(run.name, "not begun")) for run in grid.runs() if run.name not in finished]


def missing_part(missing: Sequence[MissingRun]) -> Part:
    """Return a table of the missing runs, each of which is in exactly one row."""
    seeds: dict[tuple[str, str, str, str], tuple[int, ...]] = {}
    for each in missing:
        run = each.run
        cell = (each.state, run.regime, run.task, run.surrogate)
        seeds[cell] = (*seeds.get(cell, ()), run.seed)
    tasks: dict[tuple[str, str, str, tuple[int, ...]], tuple[str, ...]] = {}
    for (state, regime, task, surrogate), own in seeds.items():
        row = (state, regime, surrogate, own)
        tasks[row] = (*tasks.get(row, ()), task)
    surrogates: dict[tuple[str, str, tuple[int, ...], tuple[str, ...]], tuple[str, ...]] = {}
    for (state, regime, surrogate, own), of_tasks in tasks.items():
        block = (state, regime, own, of_tasks)
        surrogates[block] = (*surrogates.get(block, ()), surrogate)
    return Part(
        "Missing runs",
        ("The study's command makes them; with `--share` only those of its share.",),
        ("state", "regime", "tasks", "surrogates", "seeds", "runs"),
        tuple(
            (
                state, regime, ", ".join(of_tasks), ", ".join(names), ", ".join(map(str, own)),
                str(len(of_tasks) * len(names) * len(own)),
            )
            for (state, regime, own, of_tasks), names in surrogates.items()
        ),
    )  # fmt: skip
