"""Figures of the Meta-World study, after the paper's Figures 2 and 5 to 9: PNG and SVG."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vla_rl.evaluation.statistics import Interval
from vla_rl.reporting.series import value_of
from vla_rl.studies.bands import Band
from vla_rl.studies.figures import (
    COLORS,
    FigureText,
    Look,
    Place,
    add_legend,
    draw_band,
    draw_estimate,
    has_interval,
    looks_of,
    panels_of,
    save,
    style,
)
from vla_rl.studies.metaworld.curves import metric_band, return_band
from vla_rl.studies.metaworld.grid import StudyRun
from vla_rl.studies.metaworld.results import (
    STALENESS,
    UTILIZATION,
    RunResult,
    RunTable,
)
from vla_rl.studies.metaworld.scores import (
    Improvement,
    Score,
    normalized,
    task_sets,
)
from vla_rl.studies.metaworld.summary import TITLES
from vla_rl.studies.surrogate_labels import StudySurrogate

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
IQM = "IQM of the normalised score"
BESIDE = 1.1  # factor between places of different factors on one sigma
OLD_ESS = "utilization/ess_old"

Estimate = tuple[float, Interval | None]
Bands = Mapping[Place, Mapping[str, Band | None]]  # of every label, in the panels of a title and a metric


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
        "A point per run: its closing means, coloured by its normalised score (the paper's Figure 7). Descriptive. "
        "Also in runs.csv.",
    ),
    "lag_tails": FigureText(
        "Lag and tails of the ratio",
        "A point per log point of the second half of every run, in grey those of the others (the paper's Figure 8). "
        "Descriptive. Also in points.csv.",
    ),
    "sigma": FigureText(
        "Sensitivity to σ",
        "GIPO's IQM, and the closing means of drift and of the old samples' ESS, over σ; the others as levels "
        "(the paper's Figure 9). With one σ alone the factors for bad actions stand beside each other.",
    ),
}


def write_figures(
    out: Path,
    results: RunTable,
    scores: Sequence[Score],
    improvements: Sequence[Improvement],
    random_returns: Mapping[str, float],
) -> list[Path]:
    """Draw every figure that the runs have data for; return the files."""
    looks = looks_of(results.surrogates)
    with style("metaworld"):
        figures = {
            "learning_curves": learning_curves(results, looks),
            "scores": _score_figure(scores, improvements, looks),
            "staleness": trajectories(bands_by_surrogate(results, STALENESS), looks),
            "utilization": trajectories(bands_by_surrogate(results, UTILIZATION), looks),
            "kl_ess": _score_over_ess(results, random_returns),
            "lag_tails": _scatter(results, looks, x="policy_lag/p95", y="ratio/abs_log_p95"),
            "sigma": _sigma_figure(results, scores),
        }
        return [path for name, figure in figures.items() if figure is not None for path in save(figure, out, name)]


def learning_curves(results: RunTable, looks: Mapping[str, Look]) -> Figure:
    """Plot return over env steps, by regime and task; every seed thin, mean and interval bold."""
    there = {(result.run.regime, result.run.task) for result in results}
    places = itertools.product(results.regimes, results.tasks)
    figure, panels = panels_of([place for place in places if place in there])
    drawn: list[Band] = []
    for (regime, task), axes in panels.items():
        axes.set(title=f"{task}, {regime}", xlabel="env steps", ylabel="return of training episodes")
        for label, look in looks.items():
            chosen = results.where(task=task, regime=regime, surrogate=label)
            for result in chosen:
                axes.plot(*result.curve(), color=look.color, lw=0.6, alpha=min(0.4, 1.2 / len(looks)))
            if chosen:
                drawn.append(return_band(chosen))
                draw_band(axes, drawn[-1], look, label)
    add_legend(figure, shade=has_interval(drawn))
    return figure


def bands_by_surrogate(results: RunTable, metrics: Sequence[str]) -> Bands:
    """Return the bands of metrics over optimizer steps, by regime and surrogate, over all tasks and seeds."""
    return {
        (regime, metric): {
            label: metric_band(results.where(regime=regime, surrogate=label), metric) for label in results.surrogates
        }
        for regime in results.regimes
        for metric in metrics
    }


def trajectories(bands: Bands, looks: Mapping[str, Look]) -> Figure | None:
    """Plot metrics over optimizer steps, a panel for each title and metric. None without data."""
    figure, panels = panels_of([place for place, of_place in bands.items() if any(of_place.values())])
    for (title, metric), axes in panels.items():
        axes.set(title=title, xlabel="optimizer steps", ylabel=TITLES[metric])
        for label, band in bands[title, metric].items():
            if band is not None:
                draw_band(axes, band, looks[label], label)
    drawn = [band for of_place in bands.values() for band in of_place.values() if band is not None]
    add_legend(figure, shade=has_interval(drawn))
    return figure if panels else None


def _scatter(results: RunTable, looks: Mapping[str, Look], *, x: str, y: str) -> Figure | None:
    """Plot one metric against another, by regime and surrogate, over the points of all surrogates. Descriptive only."""
    points = {
        (regime, label): found
        for regime in results.regimes
        for label in looks
        if len(found := _points(results.where(regime=regime, surrogate=label), x, y))
    }
    figure, panels = panels_of(list(points), share=True)
    for (regime, label), axes in panels.items():
        axes.set(title=f"{label}, {regime}", xlabel=TITLES[x], ylabel=TITLES[y])
        for place, others in points.items():
            if place[0] == regime:
                axes.plot(*others.T, "o", color="#d9d9d9", ms=2, mew=0, rasterized=True, zorder=1)
        axes.plot(*points[regime, label].T, "o", color=looks[label].color, ms=2, alpha=0.5, mew=0, rasterized=True)
    return figure if panels else None


def _points(results: RunTable, x: str, y: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    rows = [(value_of(record, x), value_of(record, y)) for result in results for record in result.second_half]
    return np.array([row for row in rows if None not in row], dtype=np.float64).reshape(-1, 2)


def _score_figure(scores: Sequence[Score], improvements: Sequence[Improvement], looks: Mapping[str, Look]) -> Figure:
    """Plot the IQM of the normalised score, and the probability of improvement, each with its 95 % interval."""
    rows = max(len(scores), len(improvements), 3)
    figure = Figure(figsize=(9.0, 1.2 + 0.32 * rows), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, score in enumerate(scores):
        draw_estimate(left, place, score.iqm, score.interval, looks[score.surrogate].color)
    left.set_yticks(
        range(len(scores)),
        [
            f"{score.surrogate}, {score.regime}"
            + (f", {len(score.tasks)} tasks" if len(task_sets(scores, score.regime)) > 1 else "")
            for score in scores
        ],
    )
    left.set(title=IQM, ylim=(len(scores) - 0.5, -0.5))
    for place, entry in enumerate(improvements):
        draw_estimate(right, place, entry.probability, entry.interval, "#4d4d4d")
    right.axvline(0.5, color="#bdbdbd", lw=0.8, zorder=0)
    names = [f"{entry.first} above {entry.second}, {entry.regime}" for entry in improvements]
    right.set_yticks(range(len(improvements)), names)
    right.set(title="probability of improvement", xlim=(-0.02, 1.02), ylim=(max(1, len(improvements)) - 0.5, -0.5))
    return figure


def ess_points(
    results: RunTable, value: Callable[[RunResult], float]
) -> tuple[str, dict[StudyRun, tuple[float, float, float]]]:
    """Return the metric of the KL divergence, and closing KL, closing ESS of old samples and a value of every run.

    Without a KL term only an estimate of the divergence is measured.
    """
    exact = any(result.closing("learner/kl") is not None for result in results)
    kl = "learner/kl" if exact else "learner/approx_kl"
    return kl, {
        result.run: (x, y, value(result))
        for result in results
        if (x := result.closing(kl)) is not None and (y := result.closing(OLD_ESS)) is not None
    }


def ess_figure(
    kl: str, points: Mapping[StudyRun, tuple[float, float, float]], *, value: str, means: bool = False
) -> Figure | None:
    """Plot KL against the old samples' ESS by regime, a point per run in the colour of its value. None without points.

    Args:
        kl: metric of the KL divergence.
        points: KL, ESS and value of every run.
        value: what the colour means.
        means: also draw the mean of each surrogate's runs, large.
    """
    if not points:
        return None
    surrogates = dict.fromkeys(run.surrogate for run in points)
    colors = [color for _, _, color in points.values()]
    norm = Normalize(min(colors), max(colors))
    figure, panels = panels_of([(regime, "") for regime in dict.fromkeys(run.regime for run in points)], share=True)
    for (regime, _), axes in panels.items():
        axes.set(title=regime, xlabel=TITLES[kl], ylabel=TITLES[OLD_ESS])
        for marker, label in zip(itertools.cycle(MARKERS), surrogates, strict=False):
            chosen = [point for run, point in points.items() if (run.regime, run.surrogate) == (regime, label)]
            if chosen:
                kls, sizes, of_runs = zip(*chosen, strict=True)
                scatter = partial(axes.scatter, norm=norm, marker=marker)
                drawn = scatter(kls, sizes, c=of_runs, s=16 if means else 36, label=label)
                if means:
                    mean = [[np.mean(column)] for column in (kls, sizes, of_runs)]
                    scatter(mean[0], mean[1], c=mean[2], s=90, edgecolors="#262626", zorder=3)
    figure.colorbar(drawn, ax=list(panels.values()), label=value)
    add_legend(figure)
    for handle in figure.legends[0].legend_handles:
        if isinstance(handle, PathCollection):  # a surrogate is a shape; its points have many colours
            handle.set_array(None)
            handle.set(color="#4d4d4d", sizes=[36])
    return figure


def _score_over_ess(results: RunTable, random_returns: Mapping[str, float]) -> Figure | None:
    """Plot KL against the old samples' ESS, coloured by the normalised score."""

    def score(result: RunResult) -> float:
        return normalized(result.closing_return, random_return=random_returns[result.run.task])

    return ess_figure(*ess_points(results, score), value="normalised score")


def _sigma_figure(results: RunTable, scores: Sequence[Score]) -> Figure | None:
    """Plot score, drift and ESS over σ, a line per factor on σ for bad actions; other surrogates as levels.

    Return None unless there are several settings of GIPO.
    """
    if len({StudySurrogate(score.surrogate).sigma for score in scores} - {None}) < 2:
        return None
    estimates: dict[Place, dict[str, Estimate]] = {}  # value of every surrogate, and its interval if it has one
    for regime in results.regimes:
        scored = _widest_sweep([score for score in scores if score.regime == regime])
        if not scored:
            continue
        estimates[regime, IQM] = {score.surrogate: (score.iqm, score.interval) for score in scored}
        common = RunTable(each for each in results.where(regime=regime) if each.run.task in scored[0].tasks)
        for metric in ("ratio/abs_log_p95", OLD_ESS):
            means = {score.surrogate: common.where(surrogate=score.surrogate).mean(metric) for score in scored}
            found: dict[str, Estimate] = {label: (mean, None) for label, mean in means.items() if mean is not None}
            estimates |= {(regime, TITLES[metric]): found} if found else {}
    return sigma_panels(estimates, results.surrogates)


def _widest_sweep(scores: Sequence[Score]) -> list[Score]:
    """Return the scores of one set of tasks: of those that most settings of GIPO have the largest."""
    sets: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        sets.setdefault(score.tasks, []).append(score)
    return max(
        sets.values(),
        key=lambda of_tasks: (
            sum(StudySurrogate(score.surrogate).sigma is not None for score in of_tasks),
            len(of_tasks[0].tasks),
        ),
        default=[],
    )


def sigma_panels(estimates: Mapping[Place, Mapping[str, Estimate]], surrogates: Sequence[str]) -> Figure:
    """Plot quantities over σ, a panel for each regime and quantity, a row per regime.

    Args:
        estimates: by regime and quantity, those of every surrogate.
        surrogates: all labels in their order, which gives the line styles of those without σ.
    """
    others = (label for label in surrogates if StudySurrogate(label).sigma is None)
    levels = dict(zip(others, itertools.cycle(("--", ":", "-.")), strict=False))  # the same in every panel
    figure, panels = panels_of(list(estimates))
    for (regime, quantity), axes in panels.items():
        axes.set(title=regime, xlabel="σ", ylabel=quantity, xscale="log")
        _sigma_lines(axes, estimates[regime, quantity], levels)
    shade = any(interval is not None for of_place in estimates.values() for _, interval in of_place.values())
    add_legend(figure, shade=shade)
    return figure


def _sigma_lines(axes: Axes, estimates: Mapping[str, Estimate], levels: Mapping[str, str]) -> None:
    """Draw lines of GIPO's settings; `levels` has the line style of each other surrogate."""
    lines: dict[float, list[tuple[float, Estimate]]] = {}
    for label, estimate in estimates.items():
        sigma = StudySurrogate(label).sigma
        if sigma is None:
            axes.axhline(estimate[0], color="#4d4d4d", lw=1, ls=levels[label], label=label)
        else:
            lines.setdefault(sigma[1], []).append((sigma[0], estimate))
    one = len({sigma for points in lines.values() for sigma, _ in points}) == 1  # then no band has a width
    by_scale = sorted(lines.items(), key=lambda line: (line[0] != 1, line[0]))  # the plain GIPO has the first colour
    for place, (color, (scale, points)) in enumerate(zip(itertools.cycle(COLORS), by_scale, strict=False)):
        points.sort(key=lambda point: point[0])
        sigmas = [sigma * BESIDE**place if one else sigma for sigma, _ in points]
        label = "gipo" if scale == 1 else f"gipo, σ · {scale:g} for bad actions"
        axes.plot(sigmas, [value for _, (value, _) in points], "o-", color=color, label=label)
        ends = [interval or Interval(value, value) for _, (value, interval) in points]
        low, high = [interval.low for interval in ends], [interval.high for interval in ends]
        if one:
            axes.vlines(sigmas, low, high, color=color, alpha=0.5, lw=3)
        else:
            axes.fill_between(sigmas, low, high, color=color, alpha=0.15, lw=0)
    sigmas = sorted({sigma for points in lines.values() for sigma, _ in points})
    axes.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas], minor=False)
    axes.minorticks_off()
    if one:
        axes.set_xlim(sigmas[0] / 2, sigmas[0] * 2)
