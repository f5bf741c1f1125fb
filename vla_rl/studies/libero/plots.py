"""Figures of the LIBERO study: PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vla_rl.evaluation.statistics import Interval, stratified_mean_interval, unless_point, wilson_interval
from vla_rl.reporting.series import series
from vla_rl.studies.bands import Band, band, binned
from vla_rl.studies.figures import (
    FigureText,
    Look,
    add_legend,
    draw_band,
    draw_estimate,
    looks_of,
    panels_of,
    save,
    style,
)
from vla_rl.studies.libero.plan import ACTIONS, Actions
from vla_rl.studies.libero.results import DRIFT, StudyData
from vla_rl.studies.libero.words import HOW, TITLES

BEFORE_COLOR = "#4d4d4d"

FIGURES: Mapping[str, FigureText] = {
    "success_curves": FigureText(
        "Success while training",
        "Success of the latest training episodes over env steps: every run thin, mean and 95 % bootstrap interval over "
        "seeds bold. lr0 never changes: its curve is chance.",
    ),
    "before_after": FigureText(
        "Before and after",
        "Success on the held-out states. A dot per seed; intervals of 95 %: over seeds (bootstrap) where there are "
        "several, else over episodes (Wilson).",
    ),
    "drift": FigureText("Drift and lag", "How far the policy moved from the one that acted, and how old samples were."),
}


def write_figures(out: Path, data: StudyData) -> list[Path]:
    """Draw every figure that there are data for; return the files."""
    looks = looks_of(data.plan.arms)
    with style("libero"):
        figures = {
            "success_curves": _curves(data, looks),
            "before_after": _before_after(data, looks),
            "drift": _drift(data, looks),
        }
        return [path for name, figure in figures.items() if figure is not None for path in save(figure, out, name)]


def curve_band(data: StudyData, arm: str, regime: str) -> Band | None:
    """Return success over env steps of an arm's runs; None without a curve."""
    curves = [curve for result in data.of_arm(arm, regime) if (curve := result.curve())[0]]
    return band([curves], np.interp) if curves else None


def metric_band(data: StudyData, arm: str, regime: str, metric: str) -> Band | None:
    """Return a metric over optimizer steps of an arm's runs; None if no run has it."""
    found = [series(result.records, metric, over="optimizer_steps") for result in data.of_arm(arm, regime)]
    curves = [curve for curve in found if curve[0]]
    return band([curves], binned) if curves else None


def _curves(data: StudyData, looks: Mapping[str, Look]) -> Figure | None:
    bands = {place: found for place in data.arms() if (found := curve_band(data, *place)) is not None}
    figure, panels = panels_of(list(dict.fromkeys((regime, "") for _, regime in bands)))
    for (regime, _), axes in panels.items():
        axes.set(title=regime, xlabel="env steps", ylabel="success of training episodes", ylim=(-0.02, 1.02))
        for (arm, of_regime), found in bands.items():
            if of_regime == regime:
                for result in data.of_arm(arm, regime):
                    axes.plot(*result.curve(), color=looks[arm].color, lw=0.6, alpha=0.4)
                draw_band(axes, found, looks[arm], arm)
    add_legend(figure)
    return figure if panels else None


def _drift(data: StudyData, looks: Mapping[str, Look]) -> Figure | None:
    bands = {
        (regime, metric): {
            arm: found
            for arm, of_regime in data.arms()
            if of_regime == regime and (found := metric_band(data, arm, regime, metric)) is not None
        }
        for regime in data.plan.regimes
        for metric in DRIFT
    }
    figure, panels = panels_of([place for place, found in bands.items() if found])
    for (regime, metric), axes in panels.items():
        axes.set(title=f"{TITLES[metric]}, {regime}", xlabel="optimizer steps")
        for arm, found in bands[regime, metric].items():
            draw_band(axes, found, looks[arm], arm)
    add_legend(figure)
    return figure if panels else None


def _before_after(data: StudyData, looks: Mapping[str, Look]) -> Figure | None:
    told = [actions for actions in ACTIONS if data.before(actions) is not None]
    if not told:
        return None
    arms = data.arms()
    figure = Figure(figsize=(4.6 * len(told), 1.4 + 0.36 * (1 + len(arms))), layout="constrained")
    for axes, actions in zip(figure.subplots(1, len(told), squeeze=False)[0], told, strict=True):
        _draw_rates(axes, data, actions, looks)
        axes.set_yticks(range(1 + len(arms)), ["before", *(f"{arm}, {regime}" for arm, regime in arms)])
        axes.set(title=HOW[actions], xlabel="success", xlim=(-0.02, 1.02), ylim=(len(arms) + 0.5, -0.5))
    return figure


def _draw_rates(axes: Axes, data: StudyData, actions: Actions, looks: Mapping[str, Look]) -> None:
    before = data.before(actions)
    assert before is not None
    axes.axvline(before.success_rate, color="#bdbdbd", lw=0.8, zorder=0)
    episodes = [episode.success for episode in before.episodes]
    _draw_bar(axes, 0, [before.success_rate], wilson_interval(sum(episodes), len(episodes)), BEFORE_COLOR)
    for place, (arm, regime) in enumerate(data.arms(), start=1):
        after = [found for result in data.of_arm(arm, regime) if (found := data.after(result.run, actions)) is not None]
        if after:
            successes = [episode.success for found in after for episode in found.episodes]
            rates = [found.success_rate for found in after]
            interval = (
                wilson_interval(sum(successes), len(successes))
                if len(rates) == 1
                else unless_point(stratified_mean_interval([rates]))
            )
            _draw_bar(axes, place, rates, interval, looks[arm].color)


def _draw_bar(axes: Axes, place: int, rates: list[float], interval: Interval | None, color: str) -> None:
    axes.barh(place, fmean(rates), height=0.6, color=color, alpha=0.25)
    draw_estimate(axes, place, fmean(rates), interval, color)
    if len(rates) > 1:
        axes.plot(rates, [place] * len(rates), "o", color=color, ms=3, alpha=0.6)
