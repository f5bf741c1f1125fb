"""Finished runs of a Meta-World study: one record each, and their selection.

Returns are given in the benchmark's units, without the recipe's reward scale. A run's closing value of a metric is its
mean over the log points of the last 20 % of env steps, the paper's window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from vla_rl.files import read_json_object
from vla_rl.recipe import load_recorded_recipe
from vla_rl.reporting.manifest import MANIFEST_FILE
from vla_rl.reporting.metrics_file import METRICS_FILE, read_metrics
from vla_rl.reporting.run_folder import RECIPE_FILE
from vla_rl.reporting.series import Records, closing_mean, series
from vla_rl.studies.metaworld.grid import StudyRun
from vla_rl.studies.metaworld.runner import RUN_FILE, finished_runs
from vla_rl.studies.surrogate_labels import StudySurrogate, label_of

LAGS = ("policy_lag/mean", "policy_lag/old_fraction", "policy_lag/old_p95")
AGES = (*LAGS, "replay/age_mean")
TAIL, OLD_ESS = "ratio/abs_log_p95", "utilization/ess_old"
STALENESS = (
    "policy_lag/mean",
    "policy_lag/p95",
    "policy_lag/old_fraction",
    "policy_lag/old_p95",
    "replay/age_mean",
    "ratio/abs_log_p95",
)
UTILIZATION = (
    "utilization/dead",
    "utilization/suppressed",
    "utilization/near_zero",
    "utilization/old_share",
    "utilization/ess_old",
)
WHOLE_RUN = ("ratio/abs_log_p95", "utilization/dead", "utilization/near_zero")  # these fall with the learning rate
CLOSING = (*STALENESS, *UTILIZATION, "learner/kl", "learner/entropy", "replay/ratio", "rollout/success_rate")
TITLES = {
    "policy_lag/mean": "mean lag (versions)",
    "policy_lag/p95": "P95 lag (versions)",
    "policy_lag/old_fraction": "old fraction",
    "policy_lag/old_p95": "P95 lag of the old (versions)",
    "replay/age_mean": "data age (decisions)",
    "ratio/abs_log_p95": "P95 of abs(log ρ)",
    "utilization/dead": "dead share",
    "utilization/suppressed": "suppressed share",
    "utilization/near_zero": "near-zero share",
    "utilization/old_share": "old share of the contribution",
    "utilization/ess_old": "ESS of old samples",
    "learner/kl": "KL(behaviour ‖ policy), nat",
    "learner/approx_kl": "KL(behaviour ‖ policy), estimated, nat",
}
RETURN, IQM = "closing return", "IQM of the normalised score"


@dataclass(frozen=True, slots=True)
class RunResult:
    """One finished run."""

    run: StudyRun
    records: Records
    seconds: float  # wall clock, start to end
    reward_scale: float
    old_threshold: int  # versions
    recipe: str  # YAML
    manifest: Mapping[str, Any]

    @property
    def closing_return(self) -> float:
        """Return the mean return of training episodes at the end of the run."""
        mean = closing_mean(self.records, "rollout/return")
        assert mean is not None  # a run without one is not read
        return mean / self.reward_scale

    def closing(self, metric: str) -> float | None:
        """Return the closing value of a metric; None if the run has none."""
        return closing_mean(self.records, metric)

    def whole(self, metric: str) -> float | None:
        """Return the mean over all log points, none of which is in the warm-up; None if the run has none."""
        values = series(self.records, metric, over="optimizer_steps")[1]
        return fmean(values) if values else None

    @property
    def closing_lr(self) -> float | None:
        """Return the policy's learning rate in the closing window as a share of its largest."""
        rates = series(self.records, "learner/policy_lr", over="optimizer_steps")[1]
        closing = self.closing("learner/policy_lr")
        return None if closing is None or max(rates) == 0 else closing / max(rates)

    def curve(self) -> tuple[list[float], list[float]]:
        """Return env steps and returns."""
        env_steps, returns = series(self.records, "rollout/return", over="env_steps")
        return env_steps, [value / self.reward_scale for value in returns]


class RunTable(tuple[RunResult, ...]):
    """Runs and their selection. The values of an axis come in the order of the runs."""

    __slots__ = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the names of the tasks."""
        return tuple(dict.fromkeys(result.run.task for result in self))

    @property
    def surrogates(self) -> tuple[str, ...]:
        """Return the labels of the surrogates."""
        return tuple(dict.fromkeys(result.run.surrogate for result in self))

    @property
    def regimes(self) -> tuple[str, ...]:
        """Return the names of the regimes."""
        return tuple(dict.fromkeys(result.run.regime for result in self))

    def where(self, *, task: str | None = None, surrogate: str | None = None, regime: str | None = None) -> RunTable:
        """Return the runs with these values; None matches all."""
        return RunTable(
            result
            for result in self
            if task in (None, result.run.task)
            and surrogate in (None, result.run.surrogate)
            and regime in (None, result.run.regime)
        )

    def by_surrogate(self, regime: str | None = None) -> dict[str, RunTable]:
        """Return the runs of every surrogate that has any, in one regime if it is named."""
        found = {surrogate: self.where(surrogate=surrogate, regime=regime) for surrogate in self.surrogates}
        return {surrogate: runs for surrogate, runs in found.items() if runs}

    def tasks_of(self, surrogate: str, regime: str) -> tuple[str, ...]:
        """Return the tasks on which a surrogate has a run in a regime, in the order of all tasks."""
        own = set(self.where(surrogate=surrogate, regime=regime).tasks)
        return tuple(task for task in self.tasks if task in own)

    def cells(self) -> Iterator[tuple[str, str, str, RunTable]]:
        """Yield task, regime, surrogate and the runs with these values, sorted by seed, wherever there are any."""
        for task, regime, surrogate in product(self.tasks, self.regimes, self.surrogates):
            chosen = self.where(task=task, regime=regime, surrogate=surrogate)
            if chosen:
                yield task, regime, surrogate, RunTable(sorted(chosen, key=lambda result: result.run.seed))

    def pairs(self, first: str, second: str, value: Callable[[RunResult], float]) -> list[tuple[int, float, float]]:
        """Return the seed and a value of two surrogates' runs that differ in the surrogate alone.

        The runs of a pair start from equal weights.
        """
        ours, theirs = (
            {replace(result.run, surrogate=""): value(result) for result in self.where(surrogate=surrogate)}
            for surrogate in (first, second)
        )
        return [(place.seed, ours[place], theirs[place]) for place in ours if place in theirs]

    def mean(self, metric: str, of: Callable[[RunResult, str], float | None] = RunResult.closing) -> float | None:
        """Return the mean of a metric over the runs that have it; None if none has."""
        values = [value for result in self if (value := of(result, metric)) is not None]
        return fmean(values) if values else None


def read_results(out: Path) -> tuple[RunTable, list[str]]:
    """Return all finished runs of a study, by name, and a sentence about each unreadable one.

    Raises:
        ValueError: no run has finished, or none can be read.
    """
    found: list[RunResult] = []
    broken: list[str] = []
    for folder in finished_runs(out):
        try:
            found.append(read_run(folder))
        except (ValueError, FileNotFoundError) as error:
            broken.append(f"{folder.name}: {error}")
    if not found:
        raise ValueError(
            "; ".join([f"{out}: no run of the study can be read", *broken])
            if broken
            else f"{out}: no run of the study has finished yet"
        )
    return RunTable(found), broken


def read_run(folder: Path) -> RunResult:
    """Read a finished run.

    Raises:
        ValueError, FileNotFoundError: a file is missing, broken, cut off or contradicts another.
    """
    run, seconds = _read_place(folder / RUN_FILE)
    recipe = load_recorded_recipe(folder / RECIPE_FILE)
    tasks = "+".join(task.name for task in recipe.env.task_infos())
    made = StudyRun(tasks, label_of(recipe.surrogate), recipe.regime or "no regime", recipe.seed)
    if made != run:
        raise ValueError(
            f"{folder / RECIPE_FILE}: expected the recipe of {run.name}, as {RUN_FILE} says, found one of {made.name}; "
            "copy the run again"
        )
    records = read_metrics(folder / METRICS_FILE)
    if closing_mean(records, "rollout/return") is None:
        raise ValueError(f"{folder / METRICS_FILE}: expected returns up to the end of the run, found none")
    if not (folder / METRICS_FILE).read_bytes().endswith(b"\n"):  # closing values would be of the middle of the run
        raise ValueError(f"{folder / METRICS_FILE}: cut off in its last line, as in half a copy; copy the run again")
    return RunResult(
        run=run,
        records=records,
        seconds=seconds,
        reward_scale=recipe.env.reward_factor,
        old_threshold=recipe.replay.old_threshold,
        recipe=(folder / RECIPE_FILE).read_text(encoding="utf-8"),
        manifest=read_json_object(folder / MANIFEST_FILE),
    )


def _read_place(path: Path) -> tuple[StudyRun, float]:
    """Return a run's place in the grid, and its seconds."""
    values = read_json_object(path)
    match values:
        case {"task": str(task), "surrogate": str(label), "regime": str(regime), "seed": int(seed),
              "seconds": int() | float() as seconds}:  # fmt: skip
            StudySurrogate(label)
            return StudyRun(task, label, regime, seed), float(seconds)
    raise ValueError(
        f"{path}: expected task, surrogate, regime, seed and seconds of a run, found {', '.join(values) or 'nothing'}"
    )
