"""Meta-World study in sentences, computed from its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from vla_rl.reporting.text import number, percent
from vla_rl.studies.metaworld.missing import MissingRun
from vla_rl.studies.metaworld.results import (
    RunResult,
    labels,
    paired_returns,
    select,
)
from vla_rl.studies.metaworld.scores import (
    Improvement,
    Score,
)
from vla_rl.studies.pages import between
from vla_rl.studies.surrogate_labels import StudySurrogate

ENOUGH_SEEDS = 5
SLOW = 0.2  # share of the largest learning rate


@dataclass(frozen=True, slots=True)
class Study:
    """Data of a study."""

    planned: int  # runs
    missing: Sequence[MissingRun]
    optimizer_steps: int  # budget of every run
    recipe: str  # name or path
    results: Sequence[RunResult]
    broken: Sequence[str]  # a sentence about each finished run that cannot be read
    scores: Sequence[Score]
    improvements: Sequence[Improvement]
    random_returns: Mapping[str, float]

    @property
    def regimes(self) -> list[str]:
        """Return the regimes in the order of the grid."""
        return labels(self.results, lambda run: run.regime)


def cautions(study: Study) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    found = []
    if study.missing:
        found.append(f"PARTIAL: {len(study.missing)} of {study.planned} runs are missing.")
    found += [f"LEFT OUT: {sentence}" for sentence in study.broken]
    for regime in study.regimes:
        seeds = _fewest_seeds([score for score in study.scores if score.regime == regime])
        if seeds < ENOUGH_SEEDS:
            found.append(
                f"{regime}: {seeds} seed(s) of some surrogate on every task: intervals over fewer than {ENOUGH_SEEDS} "
                "say nothing. Read the single runs."
            )
    found.append(
        "Returns are those of training episodes with sampled actions, in the benchmark's units; no benchmark score."
    )
    return found


def words(study: Study) -> Iterator[str]:
    """Yield findings regime by regime, most important first."""
    yield _extent(study)
    for regime in study.regimes:
        yield _staleness(study, regime)
        yield _ranking(study, regime)
        yield from _success(study, regime)
        yield from (_pair(study, pair) for pair in study.improvements if pair.regime == regime)
        yield _use(study, regime)
        yield from _fading(study, regime)
        yield from _sigmas(study, regime)
    yield from _fresh_against_stale(study)


def _extent(study: Study) -> str:
    results = study.results
    env_steps = fmean(result.records[-1]["env_steps"] for result in results)
    seconds = fmean(result.seconds for result in results)
    tasks = ", ".join(labels(results, lambda run: run.task))
    surrogates = ", ".join(labels(results, lambda run: run.surrogate))
    return (
        f"{len(results)} of {study.planned} runs: {surrogates} on {tasks}. Recipe {study.recipe}, "
        f"{study.optimizer_steps:,} optimizer steps each, {env_steps:,.0f} env steps and {seconds:.0f} s in the mean. "
        "Closing values are means over the last 20 % of a run's env steps; intervals are 95 % bootstrap intervals over "
        "seeds within each task."
    )


def _staleness(study: Study, regime: str) -> str:
    chosen = select(study.results, regime=regime)
    lag, p95, old = (mean_over_runs(chosen, f"policy_lag/{name}") for name in ("mean", "p95", "old_fraction"))
    reuse, threshold = mean_over_runs(chosen, "replay/ratio"), chosen[0].old_threshold
    drift = [
        f"{surrogate} {number(mean_over_runs(select(chosen, surrogate=surrogate), 'ratio/abs_log_p95'))}"
        for surrogate in labels(chosen, lambda run: run.surrogate)
    ]
    return (
        f"{regime}: a decision was used {number(reuse)} times; samples were {number(lag)} versions old in the mean "
        f"(P95 {number(p95)}), {percent(old, digits=1)} of them old, that is {threshold:,} versions or more. "
        f"P95 of |log ρ|: {', '.join(drift)}."
    )


def _success(study: Study, regime: str) -> Iterator[str]:
    """Report success of every surrogate on every task, including none."""
    told = []
    for task in labels(study.results, lambda run: run.task):
        chosen = select(study.results, regime=regime, task=task)
        shares = {
            surrogate: mean_over_runs(select(chosen, surrogate=surrogate), "rollout/success_rate")
            for surrogate in labels(chosen, lambda run: run.surrogate)
        }
        of_task = [
            f"{surrogate} {percent(share, digits=1)}" for surrogate, share in shares.items() if share is not None
        ]
        told += [f"{task}: {', '.join(of_task)}"] if of_task else []
    if told:
        yield f"{regime}: training episodes with a success in some control step, on {'; on '.join(told)}."


def _ranking(study: Study, regime: str) -> str:
    ranked = [score for score in study.scores if score.regime == regime]
    if not ranked:
        return f"{regime}: no score yet, for no seed has a run on every task."
    return f"{regime}: IQM of the normalised score: " + ", ".join(
        f"{score.surrogate} {score.iqm:.3f} ({between(score.interval)})" for score in ranked
    ) + "."  # fmt: skip


def _pair(study: Study, pair: Improvement) -> str:
    """Report which of two surrogates ends higher, and whether by more than chance; seeds share their first weights."""
    wins = []
    for task in labels(study.results, lambda run: run.task):
        pairs = paired_returns(study.results, task=task, regime=pair.regime, first=pair.first, second=pair.second)
        wins.append(f"{sum(ours > theirs for _, ours, theirs in pairs)} of {len(pairs)} on {task}")
    return (
        f"{pair.regime}: a run of {pair.first} ends above one of {pair.second} with probability {pair.probability:.2f} "
        f"({between(pair.interval, digits=2)}; {_verdict(study, pair)}); with equal seeds {', '.join(wins)}."
    )


def _verdict(study: Study, pair: Improvement) -> str:
    of_pair = [
        each for each in study.scores if each.regime == pair.regime and each.surrogate in (pair.first, pair.second)
    ]
    if _fewest_seeds(of_pair) < ENOUGH_SEEDS:
        return "too few seeds to tell from chance, 0.5"
    if pair.interval is None:
        clustered = (
            f", and {pair.sign_p_by_seed:.2g} with the pairs of one seed as one, for they share their first weights"
        )
        by_seed = clustered if pair.sign_p_by_seed != pair.sign_p else ""  # with one task they are the same
        return (
            "redrawing seeds changes nothing; exact sign test of the pairs of equal seed and task, "
            f"{pair.higher} higher and {pair.lower} lower: p = {pair.sign_p:.2g}{by_seed}"
        )
    if pair.interval.low <= 0.5 <= pair.interval.high:
        return "cannot be told from chance, 0.5"
    return "the interval excludes chance, 0.5"


def _fewest_seeds(scores: Sequence[Score]) -> int:
    return min((score.seeds for score in scores), default=0)


def _use(study: Study, regime: str) -> str:
    told = []
    for surrogate in labels(study.results, lambda run: run.surrogate):
        chosen = select(study.results, regime=regime, surrogate=surrogate)
        if chosen:
            dead, near_zero, ess = (
                mean_over_runs(chosen, f"utilization/{name}") for name in ("dead", "near_zero", "ess_old")
            )
            told.append(
                f"{surrogate} {percent(dead, digits=1)} dead, {percent(near_zero, digits=1)} near zero"
                + ("" if ess is None else f", ESS of old samples {number(ess)}")
            )
    return f"{regime}: of the action components' gradients: {'; '.join(told)}."


def _fading(study: Study, regime: str) -> Iterator[str]:
    """Report values over the whole run beside closing values, which are measured at the end of the schedule."""
    chosen = select(study.results, regime=regime)
    shares = [share for result in chosen if (share := result.closing_lr) is not None]
    if not shares:
        return
    share = fmean(shares)
    told = []
    for surrogate in labels(chosen, lambda run: run.surrogate):
        runs = select(chosen, surrogate=surrogate)
        dead, near_zero = (
            _both(runs, f"utilization/{name}", partial(percent, digits=1)) for name in ("dead", "near_zero")
        )
        drift = _both(runs, "ratio/abs_log_p95", number)
        told.append(f"{surrogate} {dead} dead, {near_zero} near zero, P95 of |log ρ| {drift}")
    stop = ", where a policy hardly moves any more" if share < SLOW else ""
    yield (
        f"{regime}: closing values are measured at {percent(share, digits=1)} of the largest learning rate{stop}. "
        f"Over the whole run, and in brackets at its end: {'; '.join(told)}."
    )


def _both(results: Sequence[RunResult], metric: str, text: Callable[[float | None], str]) -> str:
    """Return the mean over the whole run, and the closing one in brackets."""
    return f"{text(mean_over_runs(results, metric, RunResult.whole))} ({text(mean_over_runs(results, metric))})"


def _sigmas(study: Study, regime: str) -> Iterator[str]:
    sweep = [
        (sigma, score)
        for score in study.scores
        if score.regime == regime and (sigma := StudySurrogate(score.surrogate).sigma) is not None
    ]
    if len(sweep) > 1:
        yield f"{regime}: GIPO by σ (and factor for bad actions): " + ", ".join(
            f"σ {sigma:g} ({scale:g}) {score.iqm:.3f}" for (sigma, scale), score in sorted(sweep, key=lambda x: x[0])
        ) + "."  # fmt: skip


def _fresh_against_stale(study: Study) -> Iterator[str]:
    by_place = {(score.regime, score.surrogate): score for score in study.scores}
    for surrogate in labels(study.results, lambda run: run.surrogate):
        fresh, stale = by_place.get(("fresh", surrogate)), by_place.get(("stale", surrogate))
        if fresh is not None and stale is not None:
            yield (
                f"{surrogate}: IQM {fresh.iqm:.3f} on fresh and {stale.iqm:.3f} on stale experience, after as many "
                "updates; a fresh run has simulated many times the env steps."
            )


def mean_over_runs(
    results: Sequence[RunResult], metric: str, of: Callable[[RunResult, str], float | None] = RunResult.closing
) -> float | None:
    """Return the mean of a metric over the runs that have it; None if none has."""
    values = [value for result in results if (value := of(result, metric)) is not None]
    return fmean(values) if values else None
