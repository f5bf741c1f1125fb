"""The figures: what each shows, how it is drawn from runs, and which runs it wants.

A figure about one task is drawn for the paper's task if its runs carry it, else for the first task whose runs do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import correlation, fmean
from typing import NamedTuple

from matplotlib.figure import Figure

from vla_rl.evaluation.statistics import stratified_mean_interval, unless_point
from vla_rl.reporting.series import value_of
from vla_rl.studies.bands import RESAMPLES
from vla_rl.studies.figures import FigureText, Look, Place, looks_of
from vla_rl.studies.gridworld.enumeration import Record, pareto_front
from vla_rl.studies.gridworld.enumeration import study as gridworld_records
from vla_rl.studies.gridworld.plots import pareto_figure
from vla_rl.studies.metaworld.curves import metric_band
from vla_rl.studies.metaworld.grid import PAPER_TASKS, StudyRun
from vla_rl.studies.metaworld.outputs import curve_rows
from vla_rl.studies.metaworld.plots import (
    Estimate,
    bands_by_surrogate,
    ess_figure,
    ess_points,
    learning_curves,
    sigma_panels,
    trajectories,
)
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.metaworld.summary import TITLES
from vla_rl.studies.pages import Row, band_rows, rounded
from vla_rl.studies.paper_figures.plots import scatter_over
from vla_rl.studies.paper_figures.pool import Pool
from vla_rl.studies.surrogate_labels import StudySurrogate

REGIMES = ("stale", "fresh")  # in the paper's order
COMPARED = ("gipo", "ppo", "sapo")
GRIDWORLD_METHODS = ("no_clip", "ppo", "sapo", "gipo")
DIAGNOSED_TASK = "door-open-v3"
SIGMA_TASK = "handle-press-v3"
SIGMAS = ("gipo:0.5", "gipo", "gipo:2")
LAGS = ("policy_lag/mean", "policy_lag/old_fraction", "policy_lag/old_p95")
AGES = (*LAGS, "replay/age_mean")
CONTRIBUTION = ("utilization/dead", "utilization/suppressed", "utilization/near_zero")
TAIL, OLD_ESS = "ratio/abs_log_p95", "utilization/ess_old"
RETURN = "closing return"
FALLEN = 0.9  # share of the largest learning rate, below which a closing one has fallen


class Cell(NamedTuple):
    """Runs that differ in their seeds alone."""

    task: str
    surrogate: str
    regime: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure and its data."""

    figure: Figure
    rows: Sequence[Row]  # the table behind it
    results: RunTable  # the runs in it
    remarks: tuple[str, ...] = ()
    of: str = ""  # what besides the task belongs above it


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """A figure of the paper."""

    number: int
    name: str  # end of the names of its files
    text: FigureText
    needs: str  # the least that it can be drawn from
    draw: Callable[[Pool], Drawn | None]  # None: the runs do not carry it
    wanted: Callable[[Pool], list[Cell]]  # what it needs to show what the paper's shows

    @property
    def stem(self) -> str:
        """Return the name of its files."""
        return f"figure_{self.number}_{self.name}"

    def missing(self, pool: Pool) -> list[StudyRun]:
        """Return the wanted runs that are not there, with as many seeds as a study has."""
        there = {result.run for result in pool.results}
        wanted = (StudyRun(*cell, seed) for cell in self.wanted(pool) for seed in range(pool.seeds))
        return [run for run in wanted if run not in there]


def _on_one_task(
    draw: Callable[[RunTable, dict[str, Look]], Drawn | None], preferred: str
) -> Callable[[Pool], Drawn | None]:
    """Return a function that draws the preferred task, or else the first one that can be drawn."""

    def draw_pool(pool: Pool) -> Drawn | None:
        for task in dict.fromkeys((preferred, *pool.results.tasks)):
            drawn = draw(pool.results.where(task=task), looks_of(pool.results.surrogates))
            if drawn is not None:
                drawn.figure.suptitle(", ".join(filter(None, (task, drawn.of))), fontsize=11)
                paper = f"The paper shows {preferred}; the runs on it that are here do not carry the figure."
                remarks = drawn.remarks if task == preferred else (paper, *drawn.remarks)
                return replace(drawn, rows=[{"task": task, **row} for row in drawn.rows], remarks=remarks)
        return None

    return draw_pool


def _curves(pool: Pool) -> Drawn | None:
    figure = learning_curves(pool.results, looks_of(pool.results.surrogates))
    return Drawn(figure, list(curve_rows(pool.results)), pool.results)


def _curves_wanted(pool: Pool) -> list[Cell]:
    """Return both regimes and the three surrogates, on every task that is there, and on three at least."""
    tasks = list(dict.fromkeys((*pool.results.tasks, *PAPER_TASKS)))[: max(3, len(pool.results.tasks))]
    return [Cell(task, surrogate, regime) for regime in REGIMES for task in tasks for surrogate in COMPARED]


def _gridworld(_: Pool) -> Drawn:
    records = [record for record in gridworld_records() if record.method in GRIDWORLD_METHODS]
    rows = [{**asdict(record), "on_gipo_front": record in _gipo_front(records, record.case)} for record in records]
    figure = pareto_figure(records, front=lambda of_case: _gipo_front(of_case, of_case[0].case), front_of="of GIPO")
    return Drawn(figure, rows, RunTable())


def _gipo_front(records: Sequence[Record], case: str) -> list[Record]:
    return pareto_front([record for record in records if record.case == case and record.method == "gipo"])


def _staleness(results: RunTable, _: dict[str, Look]) -> Drawn | None:
    """Draw both regimes with the runs of one surrogate, for which the lags hardly differ."""
    surrogate = _in_both_regimes(results)
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
    rows = [
        row
        for metric in AGES
        for regime in REGIMES
        for row in band_rows({"regime": regime, "metric": metric}, bands["", metric][regime], clock="optimizer_steps")
    ]
    thresholds = " or ".join(f"{versions:,}" for versions in sorted({result.old_threshold for result in chosen}))
    return Drawn(figure, rows, chosen, (f"Old means a lag of at least {thresholds} versions.",), of=surrogate)


def _in_both_regimes(results: RunTable) -> str | None:
    """Return a surrogate that has runs in both regimes, GIPO if possible."""
    of_regime = [results.by_surrogate(regime) for regime in REGIMES]
    both = [surrogate for surrogate in of_regime[0] if surrogate in of_regime[1]]
    return "gipo" if "gipo" in both else next(iter(both), None)


def _both_regimes_wanted(pool: Pool) -> list[Cell]:
    of_task = pool.results.where(task=DIAGNOSED_TASK)
    there = of_task.surrogates
    surrogate = _in_both_regimes(of_task) or ("gipo" if "gipo" in there else "")
    return [Cell(DIAGNOSED_TASK, surrogate or next(iter(there), "gipo"), regime) for regime in REGIMES]


def _contribution(results: RunTable, looks: dict[str, Look]) -> Drawn | None:
    stale = results.where(regime="stale")
    bands = bands_by_surrogate(stale, CONTRIBUTION)
    there = {label for of_place in bands.values() for label, band in of_place.items() if band is not None}
    figure = trajectories(bands, looks) if len(there) > 1 else None
    if figure is None:
        return None
    rows = [
        row
        for (_, metric), of_place in bands.items()
        for label, band in of_place.items()
        for row in band_rows({"surrogate": label, "metric": metric}, band, clock="optimizer_steps")
    ]
    return Drawn(figure, rows, stale)


def _stale_wanted(*surrogates: str) -> Callable[[Pool], list[Cell]]:
    return lambda _: [Cell(DIAGNOSED_TASK, surrogate, "stale") for surrogate in surrogates]


def _kl_over_ess(results: RunTable, _: dict[str, Look]) -> Drawn | None:
    kl, points = ess_points(results.where(regime="stale"), lambda result: result.closing_return)
    figure = ess_figure(kl, points, value=RETURN, means=True)
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
    return Drawn(figure, rows, _of_runs(results, points))


def _of_runs(results: RunTable, runs: dict[StudyRun, tuple[float, float, float]]) -> RunTable:
    return RunTable(result for result in results if result.run in runs)


def _tails(results: RunTable, looks: dict[str, Look]) -> Drawn | None:
    rows: list[Row] = []
    for result in results:
        for record in result.records:
            values = {metric: value_of(record, metric) for metric in (*LAGS, TAIL)}
            if None not in values.values():
                rows.append(
                    {
                        "regime": result.run.regime,
                        "surrogate": result.run.surrogate,
                        "seed": result.run.seed,
                        "optimizer_steps": record["optimizer_steps"],
                        **{metric: rounded(value) for metric, value in values.items()},
                    }
                )
    if not any(row["regime"] == "stale" for row in rows):
        return None
    told = [
        f"{surrogate} {found:.2f}"
        for surrogate in dict.fromkeys(row["surrogate"] for row in rows)
        if (found := _correlation([row for row in rows if row["surrogate"] == surrogate])) is not None
    ]
    remarks = []
    if told:
        remarks.append(f"Correlation (Pearson) of the mean lag with the P95 of |log ρ|, all points: {', '.join(told)}.")
    if any(rate is not None and rate < FALLEN for rate in (result.closing_lr for result in results)):
        remarks.append("The learning rate falls while the lag of stale experience grows, and the tail depends on both.")
    return Drawn(scatter_over(rows, looks, xs=LAGS, y=TAIL), rows, results, tuple(remarks))


def _correlation(rows: Sequence[Row]) -> float | None:
    """Return the correlation of mean lag and tail; None if one of them never changes."""
    lags, tails = [row[LAGS[0]] for row in rows], [row[TAIL] for row in rows]
    return correlation(lags, tails) if len(set(lags)) > 1 and len(set(tails)) > 1 else None


def _sensitivity(results: RunTable, _: dict[str, Look]) -> Drawn | None:
    estimates: dict[Place, dict[str, Estimate]] = {}
    rows: list[Row] = []
    for regime in REGIMES:
        of_regime = results.by_surrogate(regime)
        if not _has_several_sigmas(of_regime):
            continue
        for quantity in (RETURN, TAIL, OLD_ESS):
            for label, runs in of_regime.items():
                values = _closing(runs, quantity)
                if values:
                    estimate = _mean_and_interval(values)
                    estimates.setdefault((regime, TITLES.get(quantity, quantity)), {})[label] = estimate
                    rows.append(_sensitivity_row(regime, quantity, label, estimate, seeds=len(values)))
    if not estimates:
        return None
    shown = {regime for regime, _ in estimates}
    return Drawn(
        sigma_panels(estimates, results.surrogates),
        rows,
        RunTable(each for each in results if each.run.regime in shown),
    )


def _closing(results: RunTable, quantity: str) -> list[float]:
    """Return closing returns, or closing means of a metric, of the runs that have it."""
    values = [result.closing_return if quantity == RETURN else result.closing(quantity) for result in results]
    return [value for value in values if value is not None]


def _mean_and_interval(values: Sequence[float]) -> Estimate:
    if len(values) < 2:
        return values[0], None
    return fmean(values), unless_point(stratified_mean_interval([values], resamples=RESAMPLES))


def _sensitivity_row(regime: str, quantity: str, label: str, estimate: Estimate, *, seeds: int) -> Row:
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
        "seeds": seeds,
    }


def _sigmas_wanted(pool: Pool) -> list[Cell]:
    """Return both regimes of the settings of GIPO on the paper's task; of the authors' three if none differ in σ."""
    there = pool.results.where(task=SIGMA_TASK).surrogates
    sigmas = [label for label in there if StudySurrogate(label).sigma is not None]
    wanted = sigmas if _has_several_sigmas(sigmas) else SIGMAS
    return [Cell(SIGMA_TASK, surrogate, regime) for regime in REGIMES for surrogate in wanted]


def _has_several_sigmas(surrogates: Iterable[str]) -> bool:
    """Return whether there are several values of σ with the same factor on it for bad actions."""
    settings = {sigma for label in surrogates if (sigma := StudySurrogate(label).sigma) is not None}
    return max(Counter(scale for _, scale in settings).values(), default=0) > 1


FIGURES = (
    PaperFigure(
        2,
        "learning_curves",
        FigureText(
            "Learning curves",
            "Return of training episodes over env steps, stale above fresh. Every run is a thin line, the mean over "
            "seeds a bold one, its shade the 95 % bootstrap interval with seeds redrawn; the paper has one run per "
            "configuration.",
        ),
        "one finished run",
        _curves,
        _curves_wanted,
    ),
    PaperFigure(
        4,
        "gridworld",
        FigureText(
            "Bias and variance on GridWorld",
            "Exact bias and variance of one gradient step, by enumeration, without a run. From case A to case C the "
            "policy lag falls. The dashed line joins the settings of GIPO that no other setting of it beats in both; "
            "the lower row enlarges the marked corner. PPO clips every action in cases A and B: no variance and all "
            "of the bias.",
        ),
        "nothing",
        _gridworld,
        lambda _: [],
    ),
    PaperFigure(
        5,
        "staleness",
        FigureText(
            "Staleness while training",
            "Mean lag, share of old samples, P95 of the old samples' lag and mean age of the data in both regimes: "
            "means over seeds with 95 % bootstrap intervals. Where no sample is old, their P95 is 0.",
        ),
        "runs of one surrogate on one task in both regimes",
        _on_one_task(_staleness, DIAGNOSED_TASK),
        _both_regimes_wanted,
    ),
    PaperFigure(
        6,
        "contributions",
        FigureText(
            "Samples that contribute nothing",
            "Shares of action components whose weight is 0 (dead), small but not 0 (suppressed), and whose weight "
            "times advantage is small (near zero), in the stale regime: means over seeds with 95 % bootstrap "
            "intervals.",
        ),
        "stale runs of two surrogates on one task",
        _on_one_task(_contribution, DIAGNOSED_TASK),
        _stale_wanted(*COMPARED),
    ),
    PaperFigure(
        7,
        "kl_ess",
        FigureText(
            "Size of the updates and use of old samples",
            "KL divergence against the old samples' normalised effective sample size, stale regime, coloured by the "
            "closing return: means over the last 20 % of env steps. A small point is a run, a large one the mean over "
            "seeds. Descriptive.",
        ),
        "stale runs of two surrogates on one task",
        _on_one_task(_kl_over_ess, DIAGNOSED_TASK),
        _stale_wanted(*COMPARED, "no_clip"),
    ),
    PaperFigure(
        8,
        "lag_tails",
        FigureText(
            "Lag and tails of the ratio",
            "P95 of |log ρ| against three measures of lag; a point per log point of every run. Descriptive: points of "
            "a run are not independent.",
        ),
        "stale runs on one task",
        _on_one_task(_tails, DIAGNOSED_TASK),
        _both_regimes_wanted,
    ),
    PaperFigure(
        9,
        "sigma",
        FigureText(
            "Sensitivity to σ",
            "Closing return, P95 of |log ρ| and the old samples' effective sample size over GIPO's σ: means over the "
            "last 20 % of env steps and over seeds, with 95 % bootstrap intervals; other surrogates as levels. Without "
            "old samples there is no effective sample size.",
        ),
        "runs of two values of σ with the same factor for bad actions, on one task in one regime",
        _on_one_task(_sensitivity, SIGMA_TASK),
        _sigmas_wanted,
    ),
)
