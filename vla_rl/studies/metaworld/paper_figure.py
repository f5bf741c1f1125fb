"""A figure of the paper: how it is drawn from runs, and which runs it wants.

A figure about one task is drawn for the paper's task if its runs carry it, else for the first task whose runs do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from matplotlib.figure import Figure

from vla_rl.studies.figures import FigureText, Look, looks_of
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.pages import Row

REGIMES = ("stale", "fresh")  # in the paper's order
COMPARED = ("gipo", "ppo", "sapo")
DIAGNOSED_TASK = "door-open-v3"


class Cell(NamedTuple):
    """Runs that differ in their seeds alone."""

    task: str
    surrogate: str
    regime: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure and its data."""

    figure: Figure
    rows: Sequence[Row]  # the table behind it
    results: RunTable  # the runs in it
    remarks: tuple[str, ...] = ()
    of: str = ""  # what besides the task belongs above it


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """A figure of the paper."""

    number: int
    name: str  # end of the names of its files
    text: FigureText
    needs: str  # the least that it can be drawn from
    draw: Callable[[RunTable], Drawn | None]  # None: the runs do not carry it
    wanted: Callable[[RunTable], list[Cell]]  # what it needs to show what the paper's shows

    @property
    def stem(self) -> str:
        """Return the name of its files."""
        return f"figure_{self.number}_{self.name}"


def on_one_task(
    draw: Callable[[RunTable, dict[str, Look]], Drawn | None], preferred: str = DIAGNOSED_TASK
) -> Callable[[RunTable], Drawn | None]:
    """Return a function that draws the preferred task, or else the first one that can be drawn."""

    def draw_first(results: RunTable) -> Drawn | None:
        for task in dict.fromkeys((preferred, *results.tasks)):
            drawn = draw(results.where(task=task), looks_of(results.surrogates))
            if drawn is not None:
                drawn.figure.suptitle(", ".join(filter(None, (task, drawn.of))), fontsize=11)
                paper = f"The paper shows {preferred}; the runs on it that are here do not carry the figure."
                remarks = drawn.remarks if task == preferred else (paper, *drawn.remarks)
                return replace(drawn, rows=[{"task": task, **row} for row in drawn.rows], remarks=remarks)
        return None

    return draw_first


def both_regimes_wanted(results: RunTable) -> list[Cell]:
    """Return both regimes of one surrogate on the diagnosed task."""
    of_task = results.where(task=DIAGNOSED_TASK)
    there = ["gipo"] if "gipo" in of_task.surrogates else [*of_task.surrogates, "gipo"]
    return [Cell(DIAGNOSED_TASK, in_both_regimes(of_task) or there[0], regime) for regime in REGIMES]


def in_both_regimes(results: RunTable) -> str | None:
    """Return a surrogate that has runs in both regimes, GIPO if possible."""
    stale, fresh = (results.by_surrogate(regime) for regime in REGIMES)
    both = [surrogate for surrogate in stale if surrogate in fresh]
    return "gipo" if "gipo" in both else next(iter(both), None)


def stale_wanted(*surrogates: str) -> Callable[[RunTable], list[Cell]]:
    """Return a function that returns stale runs of these surrogates on the diagnosed task."""
    return lambda _: [Cell(DIAGNOSED_TASK, surrogate, "stale") for surrogate in surrogates]
