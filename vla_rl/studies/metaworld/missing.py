"""Runs that a Meta-World study lacks, in a few lines: what differs in its seeds, tasks or surrogates alone is one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vla_rl.studies.metaworld.grid import Grid, StudyRun
from vla_rl.studies.metaworld.runner import finished_runs, unfinished_runs
from vla_rl.studies.pages import Part

V = TypeVar("V")


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
    places = [(each.state, each.run.regime, each.run.task, each.run.surrogate, str(each.run.seed)) for each in missing]
    return Part(
        "Missing runs",
        ("The study's command makes them; with `--share` only those of its share.",),
        ("state", "regime", "tasks", "surrogates", "seeds", "runs"),
        tuple((*map(", ".join, grid), str(math.prod(map(len, grid)))) for grid in grids_of(places, axes=(4, 2, 3))),
    )


def grids_of(places: Iterable[tuple[V, ...]], *, axes: Sequence[int]) -> list[tuple[tuple[V, ...], ...]]:
    """Return few grids that hold every place exactly once and nothing else.

    Args:
        places: places, all with as many coordinates.
        axes: coordinates along which grids that are otherwise equal become one, the first of them first.

    Returns:
        Grids in the order of their first places: for every coordinate its values.
    """
    grids: list[tuple[tuple[V, ...], ...]] = [tuple((value,) for value in place) for place in places]
    for axis in axes:
        folded: dict[tuple[tuple[V, ...], ...], tuple[V, ...]] = {}
        for grid in grids:
            others = (*grid[:axis], *grid[axis + 1 :])
            folded[others] = (*folded.get(others, ()), *grid[axis])
        grids = [(*others[:axis], values, *others[axis:]) for others, values in folded.items()]
    return grids
