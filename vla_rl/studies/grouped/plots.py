"""Figures of the study of groups: PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vla_rl.studies.bands import band
from vla_rl.studies.figures import FigureText, add_legend, draw_band, draw_estimate, looks_of, panels_of, save, style
from vla_rl.studies.grouped.plan import GroupPlan
from vla_rl.studies.grouped.results import GroupResult, MethodSummary, select

FIGURES: Mapping[str, FigureText] = {
    "curves": FigureText(
        "Success over episodes",
        "Training episodes with sampled actions, over the window that the table names: every run thin, mean and 95 % "
        "bootstrap interval over seeds bold. The dotted line is the target.",
    ),
    "episodes": FigureText(
        "Episodes until the target",
        "Mean over seeds with its 95 % bootstrap interval; over the episodes that every run had; a point per run, "
        "hollow at its budget where the target was not reached.",
    ),
}


def write_figures(
    out: Path, plan: GroupPlan, results: Sequence[GroupResult], summaries: Sequence[MethodSummary]
) -> list[Path]:
    """Draw every figure; return the files."""
    with style("groups"):
        figures = {"curves": _curves(plan, results), "episodes": _episodes(plan, results, summaries)}
        return [path for name, figure in figures.items() for path in save(figure, out, name)]


def _curves(plan: GroupPlan, results: Sequence[GroupResult]) -> Figure:
    looks = looks_of(plan.methods)
    figure, panels = panels_of([("", start.name) for start in plan.starts if select(results, start=start.name)])
    for (_, name), axes in panels.items():
        start = next(start for start in plan.starts if start.name == name)
        axes.set(title=f"start {name}", xlabel="episodes", ylabel="success of training episodes")
        axes.axhline(start.target, color="#4d4d4d", lw=0.8, ls=":")
        for method, look in looks.items():
            curves = [result.curve() for result in select(results, start=name, method=method)]
            curves = [curve for curve in curves if len(curve[0]) > 1]
            for curve in curves:
                axes.plot(*curve, color=look.color, lw=0.5, alpha=0.35)
            if curves:
                draw_band(axes, band([curves], np.interp), look, method)
    add_legend(figure)
    return figure


def _episodes(plan: GroupPlan, results: Sequence[GroupResult], summaries: Sequence[MethodSummary]) -> Figure:
    looks = looks_of(plan.methods)
    figure, panels = panels_of([("", start.name) for start in plan.starts if select(results, start=start.name)])
    for (_, name), axes in panels.items():
        start = next(start for start in plan.starts if start.name == name)
        shown = [summary for summary in summaries if summary.start == name]
        for place, summary in enumerate(shown):
            color = looks[summary.method].color
            draw_estimate(axes, place, summary.episodes, summary.interval, color)
            for result in select(results, start=name, method=summary.method):
                face = "none" if result.reached is None else color
                axes.plot(result.episodes_until, place + 0.25, "o", ms=3, mec=color, mfc=face, alpha=0.8)
        axes.set_yticks(range(len(shown)), [summary.method for summary in shown])
        axes.set(title=f"start {name}, target {start.target:g}", xlabel="episodes", ylim=(len(shown) - 0.4, -0.6))
        axes.set_xlim(left=0)
    return figure
