"""Figures of the Meta-World study: PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from vla_rl.studies.figures import FigureText, Look, draw_estimate, looks_of, save, style
from vla_rl.studies.metaworld import kl_ess, lag_tails, learning_curves, sensitivity, trajectories
from vla_rl.studies.metaworld.results import IQM, LAGS, STALENESS, TAIL, UTILIZATION, RunTable
from vla_rl.studies.metaworld.scores import Improvement, Score, task_sets

FIGURES: Mapping[str, FigureText] = {
    "learning_curves": learning_curves.OF_STUDY,
    "scores": FigureText("Scores", "IQM of the normalised score, and who ends higher, with 95 % intervals."),
    "staleness": trajectories.STALENESS_OF_STUDY,
    "utilization": trajectories.UTILIZATION_OF_STUDY,
    "kl_ess": kl_ess.OF_STUDY,
    "lag_tails": lag_tails.OF_STUDY,
    "sigma": sensitivity.OF_STUDY,
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
    points = list(lag_tails.point_rows(results, (*LAGS, TAIL)))
    staleness, use = (trajectories.bands_by_surrogate(results, metrics) for metrics in (STALENESS, UTILIZATION))
    with style("metaworld"):
        figures = {
            "learning_curves": learning_curves.learning_curves(results, looks),
            "scores": _score_figure(scores, improvements, looks),
            "staleness": trajectories.trajectories(staleness, looks),
            "utilization": trajectories.trajectories(use, looks),
            "kl_ess": kl_ess.kl_over_ess(results, random_returns),
            "lag_tails": lag_tails.tails_over_lags(points, looks),
            "sigma": sensitivity.score_over_sigma(results, scores),
        }
        return [path for name, figure in figures.items() if figure is not None for path in save(figure, out, name)]


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
