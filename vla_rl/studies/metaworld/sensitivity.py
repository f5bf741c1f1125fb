"""Sensitivity to GIPO's σ, over all tasks of a study that have a sweep, and the paper's Figure 9 on one task."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vla_rl.evaluation.statistics import Interval, stratified_mean_interval, unless_point
from vla_rl.studies.bands import RESAMPLES
from vla_rl.studies.figures import COLORS, FigureText, Look, Place, add_legend, panels_of
from vla_rl.studies.metaworld.paper_figure import REGIMES, Cell, Drawn, PaperFigure, on_one_task
from vla_rl.studies.metaworld.results import IQM, OLD_ESS, RETURN, TAIL, TITLES, RunTable
from vla_rl.studies.metaworld.scores import Score
from vla_rl.studies.pages import Row, rounded
from vla_rl.studies.surrogate_labels import StudySurrogate

TASK = "handle-press-v3"
AUTHORS = ("gipo:0.5", "gipo", "gipo:2")
BESIDE = 1.1  # factor between places of different factors on one sigma
OF_STUDY = FigureText(
    "Sensitivity to σ",
    "GIPO's IQM, and the closing means of drift and of the old samples' ESS, over σ; the others as levels. The paper's "
    "Figure 9 is of one task and of returns. With one σ alone the factors for bad actions stand beside each other.",
)

Estimate = tuple[float, Interval | None]
Estimates = dict[Place, dict[str, Estimate]]  # of every surrogate, by regime and quantity


def score_over_sigma(results: RunTable, scores: Sequence[Score]) -> Figure | None:
    """Plot score, drift and ESS over σ. None unless there are several settings of GIPO."""
    if len({StudySurrogate(score.surrogate).sigma for score in scores} - {None}) < 2:
        return None
    estimates: Estimates = {}
    for regime in results.regimes:
        scored = {score.surrogate: score for score in _widest_sweep([s for s in scores if s.regime == regime])}
        tasks = next((score.tasks for score in scored.values()), ())
        common = RunTable(each for each in results if each.run.task in tasks and each.run.surrogate in scored)
        if scored:
            estimates[regime, IQM] = {label: (score.iqm, score.interval) for label, score in scored.items()}
            estimates |= _estimates(common, regime, (TAIL, OLD_ESS))
    return _figure(estimates, results.surrogates)


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


def _estimates(results: RunTable, regime: str, quantities: Sequence[str]) -> Estimates:
    """Return closing returns, or closing means of metrics, of every surrogate in a regime."""
    found: Estimates = {}
    for quantity in quantities:
        for label, runs in results.by_surrogate(regime).items():
            estimate = _mean_and_interval(runs, quantity)
            if estimate is not None:
                found.setdefault((regime, quantity), {})[label] = estimate
    return found


def _mean_and_interval(runs: RunTable, quantity: str) -> Estimate | None:
    """Return the mean over tasks of the means over seeds; its interval takes several seeds of every task."""
    by_task = [_closing(runs.where(task=task), quantity) for task in runs.tasks]
    by_task = [values for values in by_task if values]
    if not by_task:
        return None
    mean = fmean(map(fmean, by_task))
    if min(map(len, by_task)) < 2:
        return mean, None
    return mean, unless_point(stratified_mean_interval(by_task, resamples=RESAMPLES))


def _closing(runs: RunTable, quantity: str) -> list[float]:
    values = [run.closing_return if quantity == RETURN else run.closing(quantity) for run in runs]
    return [value for value in values if value is not None]


def _figure(estimates: Estimates, surrogates: Sequence[str]) -> Figure:
    """Plot quantities over σ, a panel for each regime and quantity, a row per regime.

    Args:
        estimates: what is plotted.
        surrogates: all labels in their order, which gives the line styles of those without σ.
    """
    others = (label for label in surrogates if StudySurrogate(label).sigma is None)
    levels = dict(zip(others, itertools.cycle(("--", ":", "-.")), strict=False))  # the same in every panel
    figure, panels = panels_of(list(estimates))
    for (regime, quantity), axes in panels.items():
        axes.set(title=regime, xlabel="σ", ylabel=TITLES.get(quantity, quantity), xscale="log")
        _draw_lines(axes, estimates[regime, quantity], levels)
    shade = any(interval is not None for of_place in estimates.values() for _, interval in of_place.values())
    add_legend(figure, shade=shade)
    return figure


def _draw_lines(axes: Axes, estimates: Mapping[str, Estimate], levels: Mapping[str, str]) -> None:
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


def _of_task(results: RunTable, _: dict[str, Look]) -> Drawn | None:
    regimes = [regime for regime in REGIMES if _has_several_sigmas(results.by_surrogate(regime))]
    estimates: Estimates = {}
    for regime in regimes:
        estimates |= _estimates(results, regime, (RETURN, TAIL, OLD_ESS))
    if not estimates:
        return None
    rows = [
        _row(results.where(regime=regime, surrogate=label), regime, quantity, label, estimate)
        for (regime, quantity), of_place in estimates.items()
        for label, estimate in of_place.items()
    ]
    shown = RunTable(result for result in results if result.run.regime in regimes)
    return Drawn(_figure(estimates, results.surrogates), rows, shown)


def _row(runs: RunTable, regime: str, quantity: str, label: str, estimate: Estimate) -> Row:
    sigma, scale = StudySurrogate(label).sigma or (None, None)
    mean, interval = estimate
    return {
        "regime": regime,
        "quantity": quantity,
        "surrogate": label,
        "sigma": sigma,
        "negative_sigma_scale": scale,
        "mean": rounded(mean),
        "low": None if interval is None else rounded(interval.low),
        "high": None if interval is None else rounded(interval.high),
        "seeds": len(_closing(runs, quantity)),
    }


def _has_several_sigmas(surrogates: Iterable[str]) -> bool:
    """Return whether there are several values of σ with the same factor on it for bad actions."""
    settings = {sigma for label in surrogates if (sigma := StudySurrogate(label).sigma) is not None}
    return max(Counter(scale for _, scale in settings).values(), default=0) > 1


def _wanted(results: RunTable) -> list[Cell]:
    """Return both regimes of the settings of GIPO on the paper's task; of the authors' three if none differ in σ."""
    there = results.where(task=TASK).surrogates
    sigmas = [label for label in there if StudySurrogate(label).sigma is not None]
    wanted = sigmas if _has_several_sigmas(sigmas) else AUTHORS
    return [Cell(TASK, surrogate, regime) for regime in REGIMES for surrogate in wanted]


FIGURE_9 = PaperFigure(
    9,
    "sigma",
    FigureText(
        "Sensitivity to σ",
        "Closing return, P95 of |log ρ| and the old samples' effective sample size over GIPO's σ: means over the "
        "last 20 % of env steps and over seeds, with 95 % bootstrap intervals; other surrogates as levels. Without "
        "old samples there is no effective sample size.",
    ),
    "runs of two values of σ with the same factor for bad actions, on one task in one regime",
    on_one_task(_of_task, TASK),
    _wanted,
)
