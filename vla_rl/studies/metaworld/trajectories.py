"""Staleness and use of the samples while training, and the paper's Figures 5 and 6."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure

from vla_rl.studies.bands import Band
from vla_rl.studies.figures import FigureText, Look, Place, add_legend, draw_band, has_interval, looks_of, panels_of
from vla_rl.studies.metaworld.curves import metric_band
from vla_rl.studies.metaworld.paper_figure import (
    COMPARED,
    REGIMES,
    Drawn,
    PaperFigure,
    both_regimes_wanted,
    in_both_regimes,
    on_one_task,
    stale_wanted,
)
from vla_rl.studies.metaworld.results import AGES, STALENESS, TITLES, UTILIZATION, RunTable
from vla_rl.studies.pages import Row, band_rows

Bands = Mapping[Place, Mapping[str, Band | None]]  # of every label, in the panels of a title and a metric

CONTRIBUTION = ("utilization/dead", "utilization/suppressed", "utilization/near_zero")
STALENESS_OF_STUDY = FigureText(
    "Staleness",
    "How old the consumed samples were, and how far the policy had moved, over all tasks. The paper's Figure 5 is of "
    "one.",
)
UTILIZATION_OF_STUDY = FigureText(
    "Use of the samples", "What the surrogate made of them, over all tasks. The paper's Figure 6 is of one."
)


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


def trajectory_rows(results: RunTable) -> Iterable[Row]:
    """Yield the bands of all metrics of staleness and use, over all tasks and seeds."""
    bands = bands_by_surrogate(results, (*STALENESS, *UTILIZATION))
    for regime in results.regimes:
        for surrogate in results.surrogates:
            for metric in (*STALENESS, *UTILIZATION):
                place = {"regime": regime, "surrogate": surrogate, "metric": metric}
                yield from band_rows(place, bands[regime, metric][surrogate], clock="optimizer_steps")


def _ages(results: RunTable, _: dict[str, Look]) -> Drawn | None:
    """Draw both regimes with the runs of one surrogate, for which the lags hardly differ."""
    surrogate = in_both_regimes(results)
    if surrogate is None:
        return None
    chosen = results.where(surrogate=surrogate)
    bands = {
        ("", metric): {regime: metric_band(chosen.where(regime=regime), metric) for regime in REGIMES}
        for metric in AGES
    }
    figure = trajectories(bands, looks_of(REGIMES))
    if figure is None:
        return None
    thresholds = " or ".join(f"{versions:,}" for versions in sorted({result.old_threshold for result in chosen}))
    return Drawn(
        figure, _rows(bands, "regime"), chosen, (f"Old means a lag of at least {thresholds} versions.",), of=surrogate
    )


def _contributions(results: RunTable, looks: dict[str, Look]) -> Drawn | None:
    stale = results.where(regime="stale")
    bands = bands_by_surrogate(stale, CONTRIBUTION)
    there = {label for of_metric in bands.values() for label, band in of_metric.items() if band is not None}
    figure = trajectories(bands, looks) if len(there) > 1 else None
    if figure is None:
        return None
    return Drawn(figure, _rows(bands, "surrogate"), stale)


def _rows(bands: Bands, axis: str) -> list[Row]:
    """Return the points of bands whose labels are values of an axis."""
    return [
        row
        for (_, metric), of_metric in bands.items()
        for label, band in of_metric.items()
        for row in band_rows({axis: label, "metric": metric}, band, clock="optimizer_steps")
    ]


FIGURE_5 = PaperFigure(
    5,
    "staleness",
    FigureText(
        "Staleness while training",
        "Mean lag, share of old samples, P95 of the old samples' lag and mean age of the data in both regimes: "
        "means over seeds with 95 % bootstrap intervals. Where no sample is old, their P95 is 0.",
    ),
    "runs of one surrogate on one task in both regimes",
    on_one_task(_ages),
    both_regimes_wanted,
)
FIGURE_6 = PaperFigure(
    6,
    "contributions",
    FigureText(
        "Samples that contribute nothing",
        "Shares of action components whose weight is 0 (dead), small but not 0 (suppressed), and whose weight "
        "times advantage is small (near zero), in the stale regime: means over seeds with 95 % bootstrap "
        "intervals.",
    ),
    "stale runs of two surrogates on one task",
    on_one_task(_contributions),
    stale_wanted(*COMPARED),
)
