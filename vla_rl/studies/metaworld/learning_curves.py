"""Learning curves of a study, and the paper's Figure 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

from matplotlib.figure import Figure

from vla_rl.studies.bands import Band
from vla_rl.studies.figures import FigureText, Look, add_legend, draw_band, has_interval, looks_of, panels_of
from vla_rl.studies.metaworld.curves import return_band
from vla_rl.studies.metaworld.grid import PAPER_TASKS
from vla_rl.studies.metaworld.paper_figure import COMPARED, REGIMES, Cell, Drawn, PaperFigure
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.pages import Row, rounded

OF_STUDY = FigureText(
    "Learning curves",
    "Return of training episodes: every run thin, mean and 95 % bootstrap interval over seeds bold.",
)


def learning_curves(results: RunTable, looks: Mapping[str, Look]) -> Figure:
    """Plot return over env steps, by regime and task; every seed thin, mean and interval bold."""
    there = {(result.run.regime, result.run.task) for result in results}
    figure, panels = panels_of([place for place in product(results.regimes, results.tasks) if place in there])
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


def curve_rows(results: RunTable) -> Iterable[Row]:
    """Yield the learning curves of every task, regime and surrogate: means and intervals along env steps."""
    for task, regime, surrogate, by_seed in results.cells():
        band = return_band(by_seed)
        for place in range(len(band.clock)):
            yield {
                "task": task,
                "regime": regime,
                "surrogate": surrogate,
                "env_steps": round(float(band.clock[place])),
                "mean": round(float(band.mean[place]), 2),
                "low": rounded(float(band.low[place])),
                "high": rounded(float(band.high[place])),
                "seeds": band.runs,
            }


def _wanted(results: RunTable) -> list[Cell]:
    """Return both regimes and the three surrogates, on every task that is there, and on three at least."""
    tasks = list(dict.fromkeys((*results.tasks, *PAPER_TASKS)))[: max(3, len(results.tasks))]
    return [Cell(task, surrogate, regime) for regime in REGIMES for task in tasks for surrogate in COMPARED]


FIGURE_2 = PaperFigure(
    2,
    "learning_curves",
    FigureText(
        "Learning curves",
        "Return of training episodes over env steps, stale above fresh. Every run is a thin line, the mean over "
        "seeds a bold one, its shade the 95 % bootstrap interval with seeds redrawn; the paper has one run per "
        "configuration.",
    ),
    "one finished run",
    lambda results: Drawn(learning_curves(results, looks_of(results.surrogates)), list(curve_rows(results)), results),
    _wanted,
)
