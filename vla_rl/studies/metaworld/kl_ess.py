"""KL divergence and use of the old samples, of all tasks of a study, and the paper's Figure 7 of one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vla_rl.studies.figures import FigureText, Look, add_legend, panels_of
from vla_rl.studies.metaworld.grid import StudyRun
from vla_rl.studies.metaworld.paper_figure import COMPARED, Drawn, PaperFigure, on_one_task, stale_wanted
from vla_rl.studies.metaworld.results import OLD_ESS, RETURN, TITLES, RunResult, RunTable
from vla_rl.studies.metaworld.scores import normalized
from vla_rl.studies.pages import rounded

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
OF_STUDY = FigureText(
    "KL and effective sample size",
    "A small point is a run of any task: its closing means, coloured by its normalised score. A large one is the mean "
    "of a surrogate's runs. The paper's Figure 7 is of one task and of returns. Descriptive. Also in runs.csv.",
)

Points = Mapping[StudyRun, tuple[float, float, float]]  # KL, ESS and what the colour is


def kl_over_ess(results: RunTable, random_returns: Mapping[str, float]) -> Figure | None:
    """Plot the runs of all tasks in the colours of their normalised scores. None without points."""

    def score(result: RunResult) -> float:
        return normalized(result.closing_return, random_return=random_returns[result.run.task])

    return _figure(*_points(results, score), value="normalised score")


def _points(results: RunTable, value: Callable[[RunResult], float]) -> tuple[str, Points]:
    """Return the metric of the KL divergence, and a point for every run: closing means and a value.

    Without a KL term only an estimate of the divergence is measured.
    """
    exact = any(result.closing("learner/kl") is not None for result in results)
    kl = "learner/kl" if exact else "learner/approx_kl"
    return kl, {
        result.run: (x, y, value(result))
        for result in results
        if (x := result.closing(kl)) is not None and (y := result.closing(OLD_ESS)) is not None
    }


def _figure(kl: str, points: Points, *, value: str) -> Figure | None:
    """Plot KL against the old samples' ESS by regime: runs small, the mean of each surrogate's large.

    Args:
        kl: metric of the KL divergence.
        points: points; None is returned if there are none.
        value: what the colour means.
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
                kls, sizes, of_runs = np.transpose(chosen)
                scatter = partial(axes.scatter, norm=norm, marker=marker)
                drawn = scatter(kls, sizes, c=of_runs, s=16, label=label)
                scatter(kls.mean(), sizes.mean(), c=[of_runs.mean()], s=90, edgecolors="#262626", zorder=3)
    figure.colorbar(drawn, ax=list(panels.values()), label=value)
    add_legend(figure)
    for handle in figure.legends[0].legend_handles:
        if isinstance(handle, PathCollection):  # a surrogate is a shape; its points have many colours
            handle.set_array(None)
            handle.set(color="#4d4d4d", sizes=[36])
    return figure


def _of_task(results: RunTable, _: dict[str, Look]) -> Drawn | None:
    kl, points = _points(results.where(regime="stale"), lambda result: result.closing_return)
    figure = _figure(kl, points, value=RETURN)
    if figure is None or len({run.surrogate for run in points}) < 2:
        return None
    figure.set_size_inches(6.4, 4.4)
    rows = [
        {
            "surrogate": run.surrogate,
            "seed": run.seed,
            kl: rounded(point[0]),
            OLD_ESS: rounded(point[1]),
            "closing_return": rounded(point[2]),
        }
        for run, point in points.items()
    ]
    return Drawn(figure, rows, RunTable(result for result in results if result.run in points))


FIGURE_7 = PaperFigure(
    7,
    "kl_ess",
    FigureText(
        "Size of the updates and use of old samples",
        "KL divergence against the old samples' normalised effective sample size, stale regime, coloured by the "
        "closing return: means over the last 20 % of env steps. A small point is a run, a large one the mean over "
        "seeds. Descriptive.",
    ),
    "stale runs of two surrogates on one task",
    on_one_task(_of_task),
    stale_wanted(*COMPARED, "no_clip"),
)
