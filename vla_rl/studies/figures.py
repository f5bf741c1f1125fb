"""Style, layout and output files that the figures of all studies share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from vla_rl.evaluation.statistics import Interval
from vla_rl.studies.bands import Band

RC = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DPI = 160
COLUMNS = 3  # more would be too small to read on a page
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4d4d4d", "#8c6d31")
SHADE = 0.18  # opacity
DASHES = ("-", (0, (4, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

Place = tuple[str, str]  # a row of panels, such as a regime, and what a panel of it shows


class Look(NamedTuple):
    """Line style of one label's curves.

    Later ones are thinner and dashed, so that a curve exactly beneath shows.
    """

    color: str
    dashes: Any
    width: float


class FigureText(NamedTuple):
    """Text above and below a figure."""

    title: str
    caption: str


def looks_of(labels: Sequence[str]) -> dict[str, Look]:
    """Return a look for every label, in their order."""
    return {
        label: Look(
            COLORS[index % len(COLORS)],
            DASHES[(index + index // len(COLORS)) % len(DASHES)],  # same colour, different dashes
            2.6 - 0.4 * (index % len(DASHES)),
        )
        for index, label in enumerate(labels)
    }


def style(salt: str) -> AbstractContextManager[None]:
    """Apply the style inside a `with`.

    Args:
        salt: salt of the ids in an SVG, so that the same study gives the same file.
    """
    return mpl.rc_context(RC | {"svg.hashsalt": salt})


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`.svg."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.png", out / f"{name}.svg"]
    figure.savefig(paths[0], dpi=DPI)
    figure.savefig(paths[1], dpi=DPI, metadata={"Date": None})
    return paths


def draw_band(axes: Axes, band: Band, look: Look, label: str) -> None:
    """Draw the mean of a band as a line and its interval as a shade."""
    axes.plot(band.clock, band.mean, color=look.color, lw=look.width, ls=look.dashes, label=label)
    axes.fill_between(band.clock, band.low, band.high, color=look.color, alpha=SHADE, lw=0)


def has_interval(bands: Iterable[Band]) -> bool:
    """Return whether some band has an interval, which takes more than one run in every stratum."""
    return any(np.isfinite(band.low).any() for band in bands)


def draw_estimate(axes: Axes, place: float, value: float, interval: Interval | None, color: str) -> None:
    """Draw a value and its interval in one row of an axes with names on its vertical axis."""
    if interval is not None:
        axes.plot([interval.low, interval.high], [place] * 2, color=color, lw=3, alpha=0.5)
    axes.plot(value, place, "o", color=color)


def panels_of(places: Sequence[Place], *, share: bool = False) -> tuple[Figure, dict[Place, Axes]]:
    """Make a figure with axes for every place, at most three in a row; each first name starts a new row."""
    rows: list[Sequence[Place]] = []
    for first in dict.fromkeys(first for first, _ in places):
        of_first = [place for place in places if place[0] == first]
        width = math.ceil(len(of_first) / math.ceil(len(of_first) / COLUMNS))  # four are two by two
        rows += [of_first[start : start + width] for start in range(0, len(of_first), width)]
    columns = max(map(len, rows), default=1)
    figure = Figure(figsize=(max(4.6, 3.6 * columns), 2.7 * len(rows) + 0.5), layout="constrained")
    if not rows:
        return figure, {}
    table = figure.subplots(len(rows), columns, squeeze=False, sharex="row" if share else False, sharey=share)
    panels = {place: table[r, c] for r, row in enumerate(rows) for c, place in enumerate(row)}
    for axes in set(table.flat) - set(panels.values()):
        axes.remove()
    for axes in panels.values():
        axes.tick_params(labelbottom=True, labelleft=True)  # also on inner axes of a figure with shared axes
    return figure, panels


def add_legend(figure: Figure, *, shade: bool = False) -> None:
    """Add one legend for all axes; an axes need not show every label.

    Args:
        figure: the figure.
        shade: also say what the shades are.
    """
    named: dict[str, Any] = {}  # handles by label
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
        if axes.get_xlim()[1] > 1000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if shade:
        named["95 % interval, seeds redrawn"] = Patch(color="#4d4d4d", alpha=SHADE, lw=0)
    if named:
        legend_below(figure, list(named.values()), list(named))


def legend_below(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Add a legend below all axes, in as many rows as the figure's width asks for."""
    widths = [0.75 + 0.07 * len(name) for name in names]  # inches: a handle and its gaps, then letters
    room = float(figure.get_size_inches()[0])
    fitting = [
        columns  # each is filled before the next, and as wide as its widest entry
        for columns in range(1, len(names) + 1)
        if sum(max(column) for column in np.array_split(widths, columns)) <= room
    ]
    figure.legend(handles, names, loc="outside lower center", ncols=max(fitting, default=1))
