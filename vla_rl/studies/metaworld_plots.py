"""Figures of the Meta-World study, after the paper's Figures 2 and 5 to 9: PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from vla_rl.evaluation.statistics import Interval
from vla_rl.reporting.series import value_of
from vla_rl.studies.figures import save, style
from vla_rl.studies.metaworld import StudySurrogate
from vla_rl.studies.metaworld_bands import Band, metric_band, return_band
from vla_rl.studies.metaworld_results import (
    STALENESS,
    UTILIZATION,
    Improvement,
    RunResult,
    Score,
    labels,
    select,
)
from vla_rl.studies.metaworld_summary import TITLES

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4d4d4d", "#8c6d31")


class FigureText(NamedTuple):
    """What is written above and below a figure."""

    title: str
    caption: str


FIGURES: Mapping[str, FigureText] = {
    "learning_curves": FigureText(
        "Learning curves",
        "Return of training episodes: every run thin, mean and 95 % bootstrap interval over seeds bold.",
    ),
    "scores": FigureText("Scores", "IQM of the normalised score, and who ends higher, with 95 % intervals."),
    "staleness": FigureText(
        "Staleness", "How old the consumed samples were, and how far the policy had moved (the paper's Figure 5)."
    ),
    "utilization": FigureText("Use of the samples", "What the surrogate made of them (the paper's Figure 6)."),
    "kl_ess": FigureText(
        "KL and effective sample size",
        "A point per log point of the second half of every run (the paper's Figure 7). Descriptive.",
    ),
    "lag_tails": FigureText(
        "Lag and tails of the ratio",
        "A point per log point of the second half of every run (the paper's Figure 8). Descriptive.",
    ),
    "sigma": FigureText(
        "Sensitivity to σ", "GIPO's IQM over σ; the other surrogates as levels (the paper's Figure 9)."
    ),
}


def write_figures(
    out: Path, results: Sequence[RunResult], scores: Sequence[Score], improvements: Sequence[Improvement]
) -> list[Path]:
    """Draw everything that the runs have data for; returns the files."""
    surrogates = labels(results, lambda run: run.surrogate)
    colors = {label: COLORS[index % len(COLORS)] for index, label in enumerate(surrogates)}
    written: list[Path] = []
    with style("metaworld"):
        written += save(_learning_curves(results, colors), out, "learning_curves")
        written += save(_score_figure(scores, improvements, colors), out, "scores")
        written += save(_trajectories(results, colors, STALENESS), out, "staleness")
        written += save(_trajectories(results, colors, UTILIZATION), out, "utilization")
        written += save(_scatter(results, colors, x="learner/kl", y="utilization/ess_old"), out, "kl_ess")
        written += save(_scatter(results, colors, x="policy_lag/p95", y="ratio/abs_log_p95"), out, "lag_tails")
        if len({StudySurrogate(label).sigma for label in surrogates} - {None}) > 1:
            written += save(_sigma_figure(scores), out, "sigma")
    return written


def _learning_curves(results: Sequence[RunResult], colors: Mapping[str, str]) -> Figure:
    """Return over env steps, a row per regime and a column per task; every seed thin, mean and interval bold."""
    tasks, regimes = labels(results, lambda run: run.task), labels(results, lambda run: run.regime)
    with _grid(rows=regimes, columns=tasks) as (figure, axes_of):
        for regime in regimes:
            for task in tasks:
                axes = axes_of(regime, task)
                axes.set(title=f"{task}, {regime}", xlabel="env steps", ylabel="return of training episodes")
                for label, color in colors.items():
                    chosen = select(results, task=task, regime=regime, surrogate=label)
                    for result in chosen:
                        axes.plot(*result.curve(), color=color, lw=0.6, alpha=0.4)
                    if chosen:
                        _draw_band(axes, return_band(chosen), color, label)
        _legend(figure)
    return figure


def _trajectories(results: Sequence[RunResult], colors: Mapping[str, str], metrics: Sequence[str]) -> Figure:
    """Metrics over optimizer steps, a row per regime; means over all tasks and seeds."""
    regimes = labels(results, lambda run: run.regime)
    with _grid(rows=regimes, columns=metrics, width=3.1) as (figure, axes_of):
        for regime in regimes:
            for metric in metrics:
                axes = axes_of(regime, metric)
                axes.set(title=f"{TITLES[metric]}, {regime}", xlabel="optimizer steps")
                for label, color in colors.items():
                    band = metric_band(select(results, regime=regime, surrogate=label), metric)
                    if band is not None:
                        _draw_band(axes, band, color, label)
        _legend(figure)
    return figure


def _scatter(results: Sequence[RunResult], colors: Mapping[str, str], *, x: str, y: str) -> Figure:
    """One metric against another: a point per log point of the second half of every run. Descriptive, no cause."""
    regimes = labels(results, lambda run: run.regime)
    with _grid(rows=["all"], columns=regimes, width=4.6, height=3.6) as (figure, axes_of):
        for regime in regimes:
            axes = axes_of("all", regime)
            axes.set(title=regime, xlabel=TITLES[x], ylabel=TITLES[y])
            for label, color in colors.items():
                points = _points(select(results, regime=regime, surrogate=label), x, y)
                if len(points):
                    axes.plot(*points.T, "o", color=color, ms=2.2, alpha=0.35, mew=0, label=label)
        _legend(figure)
    return figure


def _points(results: Sequence[RunResult], x: str, y: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    rows = [
        (value_of(record, x), value_of(record, y))
        for result in results
        for record in result.records[len(result.records) // 2 :]
    ]
    return np.array([row for row in rows if None not in row], dtype=np.float64).reshape(-1, 2)


def _score_figure(scores: Sequence[Score], improvements: Sequence[Improvement], colors: Mapping[str, str]) -> Figure:
    """IQM of the normalised score, and probability of improvement, each with its 95 % interval."""
    rows = max(len(scores), len(improvements), 3)
    figure = Figure(figsize=(9.0, 1.2 + 0.32 * rows), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, score in enumerate(scores):
        _draw_estimate(left, place, score.iqm, score.interval, colors[score.surrogate])
    left.set_yticks(range(len(scores)), [f"{score.surrogate}, {score.regime}" for score in scores])
    left.set(title="IQM of the normalised score", ylim=(len(scores) - 0.5, -0.5))
    for place, entry in enumerate(improvements):
        _draw_estimate(right, place, entry.probability, entry.interval, "#4d4d4d")
    right.axvline(0.5, color="#bdbdbd", lw=0.8, zorder=0)
    names = [f"{entry.first} above {entry.second}, {entry.regime}" for entry in improvements]
    right.set_yticks(range(len(improvements)), names)
    right.set(title="probability of improvement", xlim=(-0.02, 1.02), ylim=(max(1, len(improvements)) - 0.5, -0.5))
    return figure


def _draw_estimate(axes: Axes, place: int, value: float, interval: Interval | None, color: str) -> None:
    if interval is not None:
        axes.plot([interval.low, interval.high], [place] * 2, color=color, lw=3, alpha=0.5)
    axes.plot(value, place, "o", color=color)


def _sigma_figure(scores: Sequence[Score]) -> Figure:
    """IQM over σ, a line per factor on σ for bad actions; other surrogates as levels."""
    regimes = list(dict.fromkeys(score.regime for score in scores))
    with _grid(rows=["all"], columns=regimes, width=4.6, height=3.4) as (figure, axes_of):
        for regime in regimes:
            axes = axes_of("all", regime)
            axes.set(title=regime, xlabel="σ", ylabel="IQM of the normalised score", xscale="log")
            of_regime = [score for score in scores if score.regime == regime]
            _sigma_lines(axes, of_regime)
            for index, score in enumerate(
                score for score in of_regime if StudySurrogate(score.surrogate).sigma is None
            ):
                axes.axhline(score.iqm, color="#4d4d4d", lw=1, ls=("--", ":", "-.")[index % 3], label=score.surrogate)
        _legend(figure)
    return figure


def _sigma_lines(axes: Axes, scores: Sequence[Score]) -> None:
    lines: dict[float, list[tuple[float, Score]]] = {}
    for score in scores:
        sigma = StudySurrogate(score.surrogate).sigma
        if sigma is not None:
            lines.setdefault(sigma[1], []).append((sigma[0], score))
    for color, (scale, points) in zip(COLORS, sorted(lines.items()), strict=False):
        points.sort(key=lambda point: point[0])
        sigmas = [sigma for sigma, _ in points]
        axes.plot(sigmas, [score.iqm for _, score in points], "o-", color=color, label=f"σ · {scale:g} for bad actions")
        ends = [score.interval or Interval(score.iqm, score.iqm) for _, score in points]
        low, high = [interval.low for interval in ends], [interval.high for interval in ends]
        axes.fill_between(sigmas, low, high, color=color, alpha=0.15, lw=0)
    sigmas = sorted({sigma for points in lines.values() for sigma, _ in points})
    axes.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas], minor=False)
    axes.minorticks_off()


def _draw_band(axes: Axes, band: Band, color: str, label: str) -> None:
    axes.plot(band.clock, band.mean, color=color, lw=1.6, label=label)
    axes.fill_between(band.clock, band.low, band.high, color=color, alpha=0.18, lw=0)


@contextmanager
def _grid(
    *, rows: Sequence[str], columns: Sequence[str], width: float = 3.4, height: float = 2.6
) -> Iterator[tuple[Figure, Callable[[str, str], Axes]]]:
    figure = Figure(figsize=(max(4.6, width * len(columns)), height * len(rows) + 0.5), layout="constrained")
    table = figure.subplots(len(rows), len(columns), squeeze=False)
    yield figure, lambda row, column: table[rows.index(row), columns.index(column)]


def _legend(figure: Figure) -> None:
    """One legend for all axes; not every axes need show every surrogate."""
    named: dict[str, Any] = {}  # handles by label
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
        if axes.get_xlim()[1] > 1000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(8, len(named)))
