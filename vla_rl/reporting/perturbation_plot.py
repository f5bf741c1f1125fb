"""Picture of a perturbed evaluation: success by level, a panel for each kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vla_rl.reporting.panels import COLORS
from vla_rl.reporting.run_plots import COLUMNS, FAINT, INK, PANEL_SIZE

LEVELS = (1, 2, 3, 4, 5)


def draw_perturbations(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw success rates with Wilson intervals by level, beside the unperturbed rate and those of controls.

    Args:
        results: entries of `perturbations` in a `results.json`, of one suite.
    """
    kinds = list(dict.fromkeys(one["kind"] for one in results if one["level"] is not None))
    controls = [one for one in results if one["level"] is None]
    rows = math.ceil(len(kinds) / COLUMNS)
    figure = Figure(figsize=(PANEL_SIZE[0] * COLUMNS, PANEL_SIZE[1] * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axes, kind in zip(grid, kinds, strict=False):
        own = sorted((one for one in results if one["kind"] == kind), key=lambda one: one["level"])
        axes.axhline(own[0]["comparison"]["first_rate"], color=INK, linewidth=1)
        for number, control in enumerate(controls):
            axes.axhline(control["success_rate"], color=COLORS[1 + number], linewidth=1, linestyle=":")
        for one in own:
            axes.plot([one["level"]] * 2, [one["wilson"]["low"], one["wilson"]["high"]], color=COLORS[0], alpha=0.45)
        levels, rates = [one["level"] for one in own], [one["success_rate"] for one in own]
        axes.plot(levels, rates, "o-", color=COLORS[0], markersize=4)
        axes.set_title(kind, fontsize=9, color=INK)
        axes.set_xticks(LEVELS)
        axes.set_xlim(LEVELS[0] - 0.4, LEVELS[-1] + 0.4)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.tick_params(labelsize=7)
        axes.grid(visible=True, color=FAINT, linewidth=0.6)
    for axes in list(grid):
        axes.set_axis_off()
    words = ["line: unperturbed", *(f"dotted: {control['kind']}" for control in controls)]
    figure.supxlabel(f"level ({', '.join(words)})", fontsize=8, color=INK)
    figure.supylabel("success rate, 95 % Wilson interval", fontsize=8, color=INK)
    return figure
