"""Tails of the ratio over the lag, of all tasks of a study, and the paper's Figure 8 of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import correlation

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vla_rl.reporting.series import value_of
from vla_rl.studies.figures import FigureText, Look, legend_below, panels_of
from vla_rl.studies.metaworld.paper_figure import Drawn, PaperFigure, both_regimes_wanted, on_one_task
from vla_rl.studies.metaworld.results import LAGS, TAIL, TITLES, RunTable
from vla_rl.studies.pages import Row, rounded

MARKERS = {"stale": "o", "fresh": "+"}
OPACITY = 0.5
FALLEN = 0.9  # share of the largest learning rate, below which a closing one has fallen
OF_STUDY = FigureText(
    "Lag and tails of the ratio",
    "P95 of |log ρ| against three measures of lag; a point per log point of every run. Over all tasks; the paper's "
    "Figure 8 is of one. Descriptive: points of a run are not independent. Also in points.csv.",
)


def point_rows(results: RunTable, metrics: Sequence[str]) -> Iterable[Row]:
    """Yield metrics of every log point of every run."""
    for result in results:
        for record in result.records:
            yield {
                "task": result.run.task,
                "regime": result.run.regime,
                "surrogate": result.run.surrogate,
                "seed": result.run.seed,
                "optimizer_steps": record["optimizer_steps"],
                **{name: rounded(value_of(record, name)) for name in metrics},
            }


def tails_over_lags(rows: Sequence[Row], looks: Mapping[str, Look]) -> Figure | None:
    """Plot the tail over each measure of lag: colour by surrogate, marker by regime. None without a complete point.

    The points of a regime are drawn in a random order, the same in every call, so that no surrogate hides another.
    """
    rows = _complete(rows)
    if not rows:
        return None
    figure, panels = panels_of([("", lag) for lag in LAGS])
    shown = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    for (_, lag), axes in panels.items():
        axes.set(xlabel=TITLES[lag], ylabel=TITLES[TAIL])
        for regime, marker in MARKERS.items():
            points = [row for row in shown if row["regime"] == regime]
            axes.scatter(
                [row[lag] for row in points],
                [row[TAIL] for row in points],
                c=[to_rgba(looks[row["surrogate"]].color, OPACITY) for row in points],
                marker=marker,
                s=9 if marker == "o" else 16,
                linewidths=0 if marker == "o" else 0.8,
                rasterized=True,
            )
    there = {name for row in rows for name in (row["surrogate"], row["regime"])}
    looked = [(label, "s", look.color) for label, look in looks.items()]
    marked = [(regime, marker, "#4d4d4d") for regime, marker in MARKERS.items()]
    handles = {
        name: Line2D([], [], marker=marker, ls="none", color=color)
        for name, marker, color in (*looked, *marked)
        if name in there
    }
    legend_below(figure, list(handles.values()), list(handles))
    return figure


def _complete(rows: Iterable[Row]) -> list[Row]:
    """Return the points that have all metrics of the figure."""
    return [row for row in rows if None not in [row[metric] for metric in (*LAGS, TAIL)]]


def _of_task(results: RunTable, looks: dict[str, Look]) -> Drawn | None:
    rows = _complete(point_rows(results, (*LAGS, TAIL)))
    figure = tails_over_lags(rows, looks)
    if figure is None or not any(row["regime"] == "stale" for row in rows):
        return None
    told = [
        f"{surrogate} {found:.2f}"
        for surrogate in dict.fromkeys(row["surrogate"] for row in rows)
        if (found := _correlation([row for row in rows if row["surrogate"] == surrogate])) is not None
    ]
    remarks = []
    if told:
        remarks.append(f"Correlation (Pearson) of the mean lag with the P95 of |log ρ|, all points: {', '.join(told)}.")
    if any(rate is not None and rate < FALLEN for rate in (result.closing_lr for result in results)):
        remarks.append("The learning rate falls while the lag of stale experience grows, and the tail depends on both.")
    return Drawn(figure, rows, results, tuple(remarks))


def _correlation(rows: Sequence[Row]) -> float | None:
    """Return the correlation of mean lag and tail; None if one of them never changes."""
    lags, tails = [row[LAGS[0]] for row in rows], [row[TAIL] for row in rows]
    return correlation(lags, tails) if len(set(lags)) > 1 and len(set(tails)) > 1 else None


FIGURE_8 = PaperFigure(
    8,
    "lag_tails",
    FigureText(
        "Lag and tails of the ratio",
        "P95 of |log ρ| against three measures of lag; a point per log point of every run. Descriptive: points of "
        "a run are not independent.",
    ),
    "stale runs on one task",
    on_one_task(_of_task),
    both_regimes_wanted,
)
