"""Drawings that only the paper's figures need; the others are those of the two studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vla_rl.studies.figures import Look, legend_below, panels_of
from vla_rl.studies.metaworld.summary import TITLES
from vla_rl.studies.pages import Row

MARKERS = {"stale": "o", "fresh": "+"}
OPACITY = 0.5


def scatter_over(rows: Sequence[Row], looks: Mapping[str, Look], *, xs: Sequence[str], y: str) -> Figure:
    """Plot one metric over several others: a panel for each, colour by surrogate, marker by regime.

    The points of a regime are drawn in a random order, the same in every call, so that no surrogate hides another.

    Args:
        rows: points: regime, surrogate and the metrics.
        looks: look of every surrogate.
        xs: metrics of the first axes.
        y: metric of the second axis.
    """
    figure, panels = panels_of([("", x) for x in xs])
    order = np.random.default_rng(0).permutation(len(rows))
    shown = [rows[place] for place in order]
    for (_, x), axes in panels.items():
        axes.set(xlabel=TITLES[x], ylabel=TITLES[y])
        for regime, marker in MARKERS.items():
            points = [row for row in shown if row["regime"] == regime]
            axes.scatter(
                [row[x] for row in points],
                [row[y] for row in points],
                c=[to_rgba(looks[row["surrogate"]].color, OPACITY) for row in points],
                marker=marker,
                s=9 if marker == "o" else 16,
                linewidths=0 if marker == "o" else 0.8,
                rasterized=True,
            )
    there = {row["surrogate"] for row in rows}
    handles = [
        Line2D([], [], marker="s", ls="none", color=look.color, label=label)
        for label, look in looks.items()
        if label in there
    ]
    handles += [
        Line2D([], [], marker=marker, ls="none", color="#4d4d4d", label=regime)
        for regime, marker in MARKERS.items()
        if any(row["regime"] == regime for row in rows)
    ]
    legend_below(figure, handles, [str(handle.get_label()) for handle in handles])
    return figure
