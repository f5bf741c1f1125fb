"""Meta-World study in sentences, computed from its runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import combinations
from statistics import fmean

from vla_rl.evaluation.statistics import interquartile_mean
from vla_rl.reporting.text import number, percent
from vla_rl.studies.metaworld.results import RunResult, RunTable
from vla_rl.studies.metaworld.scores import Improvement, Score, complete_seeds, score_table, task_sets
from vla_rl.studies.metaworld.study import Study
from vla_rl.studies.pages import between
from vla_rl.studies.surrogate_labels import StudySurrogate

ENOUGH_SEEDS = 5
SLOW = 0.2  # share of the largest learning rate


def cautions(study: Study) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    found = []
    if study.missing:
        found.append(f"PARTIAL: {len(study.missing)} of {study.planned} runs are missing.")
    found += [f"LEFT OUT: {sentence}" for sentence in study.broken]
    for regime in study.results.regimes:
        seeds = 0 if _unscored(study, regime) else min(score.seeds for score in study.scores if score.regime == regime)
        if seeds < ENOUGH_SEEDS:
            found.append(
                f"{regime}: {seeds} seed(s) of some surrogate on every task: intervals over fewer than {ENOUGH_SEEDS} "
                "say nothing. Read the single runs."
            )
    found += _unlike_tasks(study)
    found.append(
        "Returns are those of training episodes with sampled actions, in the benchmark's units; no benchmark score."
    )
    return found


def _unlike_tasks(study: Study) -> Iterator[str]:
    """Warn where means over runs are over different tasks."""
    places: dict[tuple[str, ...], list[str]] = {}
    for regime in study.results.regimes:
        for surrogate in study.results.by_surrogate(regime):
            tasks = study.results.tasks_of(surrogate, regime)
            places.setdefault(tasks, []).append(f"{surrogate} {regime}")
    if len(places) > 1:
        told = "; ".join(f"{', '.join(tasks)}: {', '.join(names)}" for tasks, names in places.items())
        yield (
            f"Not all have the same tasks. {told}. Scores are compared on common tasks; means over runs are over the "
            "tasks that each has."
        )


def words(study: Study) -> Iterator[str]:
    """Yield findings regime by regime, most important first."""
    yield _extent(study)
    for regime in study.results.regimes:
        yield _staleness(study, regime)
        yield from _ranking(study, regime)
        yield from _success(study, regime)
        yield from (_pair(study, pair) for pair in study.improvements if pair.regime == regime)
        yield from _uncompared(study, regime)
        yield _use(study, regime)
        yield from _fading(study, regime)
        yield from _sigmas(study, regime)
    yield from _fresh_against_stale(study)


def _extent(study: Study) -> str:
    results = study.results
    env_steps = fmean(result.records[-1]["env_steps"] for result in results)
    seconds = fmean(result.seconds for result in results)
    return (
        f"{len(results)} of {study.planned} runs: {', '.join(results.surrogates)} on {', '.join(results.tasks)}. "
        f"Recipe {study.recipe}, {study.optimizer_steps:,} optimizer steps each, {env_steps:,.0f} env steps and "
        f"{seconds:.0f} s in the mean. "
        "Closing values are means over the last 20 % of a run's env steps; intervals are 95 % bootstrap intervals over "
        "seeds within each task, or where it says so over seeds with all their tasks."
    )


def _staleness(study: Study, regime: str) -> str:
    chosen = study.results.where(regime=regime)
    lag, p95, old = (chosen.mean(f"policy_lag/{name}") for name in ("mean", "p95", "old_fraction"))
    reuse, threshold = chosen.mean("replay/ratio"), chosen[0].old_threshold
    drift = [
        f"{surrogate} {number(runs.mean('ratio/abs_log_p95'))}"
        for surrogate, runs in study.results.by_surrogate(regime).items()
    ]
    return (
        f"{regime}: a decision was used {number(reuse)} times; samples were {number(lag)} versions old in the mean "
        f"(P95 {number(p95)}), {percent(old, digits=1)} of them old, that is {threshold:,} versions or more. "
        f"P95 of |log ρ|: {', '.join(drift)}."
    )


def _success(study: Study, regime: str) -> Iterator[str]:
    """Report success of every surrogate on every task, including none."""
    told = []
    for task in study.results.tasks:
        shares = {
            surrogate: runs.where(task=task).mean("rollout/success_rate")
            for surrogate, runs in study.results.by_surrogate(regime).items()
        }
        of_task = [
            f"{surrogate} {percent(share, digits=1)}" for surrogate, share in shares.items() if share is not None
        ]
        told += [f"{task}: {', '.join(of_task)}"] if of_task else []
    if told:
        yield f"{regime}: training episodes with a success in some control step, on {'; on '.join(told)}."


def _ranking(study: Study, regime: str) -> Iterator[str]:
    """Report the scores, those of the same tasks in one sentence."""
    sets = task_sets(study.scores, regime)
    for tasks in sets:
        told = ", ".join(
            f"{score.surrogate} {score.iqm:.3f} ({between(score.interval)}{_by_seed(score)})"
            for score in study.scores
            if (score.regime, score.tasks) == (regime, tasks)
        )
        yield f"{regime}: IQM of the normalised score{_where(tasks, sets)}: {told}."
    unscored = _unscored(study, regime)
    if unscored:
        yield f"{regime}: no score yet of {', '.join(unscored)}, for no seed has a run on every task of it."


def _by_seed(score: Score) -> str:
    """Return the interval by seed; nothing where it is the other one."""
    return f"; by seed {between(score.interval_by_seed)}" if len(score.tasks) > 1 and score.seeds > 1 else ""


def _where(tasks: Sequence[str], sets: Collection[Sequence[str]]) -> str:
    """Name tasks where a reader might think of others."""
    return f" on {', '.join(tasks)}" if len(sets) > 1 else ""


def _unscored(study: Study, regime: str) -> list[str]:
    """Return the surrogates of a regime without a score of all their tasks."""
    return [
        surrogate
        for surrogate in study.results.by_surrogate(regime)
        if not any(
            (score.regime, score.surrogate) == (regime, surrogate)
            and score.tasks == study.results.tasks_of(surrogate, regime)
            for score in study.scores
        )
    ]


def _uncompared(study: Study, regime: str) -> Iterator[str]:
    """Name the pairs of surrogates that have no probability of improvement."""
    compared = {(pair.first, pair.second) for pair in study.improvements if pair.regime == regime}
    there = study.results.by_surrogate(regime)
    missing = [f"{first} and {second}" for first, second in combinations(there, 2) if (first, second) not in compared]
    if missing:
        yield (
            f"{regime}: not compared yet, for they have no task in common or no seed on all common tasks: "
            f"{'; '.join(missing)}."
        )


def _pair(study: Study, pair: Improvement) -> str:
    """Report which of two surrogates ends higher, and whether by more than chance; seeds share their first weights."""
    wins = []
    for task in pair.tasks:
        of_task = study.results.where(task=task, regime=pair.regime)
        pairs = of_task.pairs(pair.first, pair.second, lambda run: run.closing_return)
        wins.append(f"{sum(ours > theirs for _, ours, theirs in pairs)} of {len(pairs)} on {task}")
    return (
        f"{pair.regime}: a run of {pair.first} ends above one of {pair.second} with probability {pair.probability:.2f} "
        f"({between(pair.interval, digits=2)}{_left_out(study, pair)}; {_verdict(study, pair)}); with equal seeds "
        f"{', '.join(wins)}."
    )


def _left_out(study: Study, pair: Improvement) -> str:
    """Name the seeds that the probability is of, where there are runs of others, which the pairs may have."""
    runs = {
        result.run
        for task in pair.tasks
        for surrogate in (pair.first, pair.second)
        for result in study.results.where(task=task, surrogate=surrogate, regime=pair.regime)
    }
    first, second = pair.seeds
    if len(runs) == (first + second) * len(pair.tasks):
        return ""
    return f", of the {first} and {second} seeds that have all common tasks"


def _verdict(study: Study, pair: Improvement) -> str:
    if min(pair.seeds) < ENOUGH_SEEDS:
        return "too few seeds to tell from chance, 0.5"
    if pair.interval is None:
        clustered = (
            f", and {pair.test.p_by_seed:.2g} with the pairs of one seed as one, for they share their first weights"
        )
        by_seed = clustered if pair.test.p_by_seed != pair.test.p else ""  # with one task they are the same
        return (
            "redrawing seeds changes nothing; exact sign test of the pairs of equal seed and task, "
            f"{pair.test.higher} higher and {pair.test.lower} lower: p = {pair.test.p:.2g}{by_seed}"
        )
    if pair.interval.low <= 0.5 <= pair.interval.high:
        return "cannot be told from chance, 0.5"
    compared = sum(each.regime == pair.regime for each in study.improvements)
    if len(pair.tasks) == 1:
        told = f"the interval excludes chance, 0.5; exact sign test p = {pair.test.p:.2g}"
    else:
        told = (
            "the interval excludes chance, 0.5, if the runs of one seed are independent; exact sign test "
            f"p = {pair.test.p:.2g}, and {pair.test.p_by_seed:.2g} with the pairs of one seed as one"
        )
    return f"{told}; one of {compared} comparisons, for which nothing is corrected" if compared > 1 else told


def _use(study: Study, regime: str) -> str:
    told = []
    for surrogate, runs in study.results.by_surrogate(regime).items():
        dead, near_zero, ess = (runs.mean(f"utilization/{name}") for name in ("dead", "near_zero", "ess_old"))
        told.append(
            f"{surrogate} {percent(dead, digits=1)} dead, {percent(near_zero, digits=1)} near zero"
            + ("" if ess is None else f", ESS of old samples {number(ess)}")
        )
    return f"{regime}: of the action components' gradients: {'; '.join(told)}."


def _fading(study: Study, regime: str) -> Iterator[str]:
    """Report values over the whole run beside closing values, which are measured at the end of the schedule."""
    shares = [share for result in study.results.where(regime=regime) if (share := result.closing_lr) is not None]
    if not shares:
        return
    share = fmean(shares)
    told = []
    for surrogate, runs in study.results.by_surrogate(regime).items():
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


def _both(runs: RunTable, metric: str, text: Callable[[float | None], str]) -> str:
    """Return the mean over the whole run, and the closing one in brackets."""
    return f"{text(runs.mean(metric, RunResult.whole))} ({text(runs.mean(metric))})"


def _sigmas(study: Study, regime: str) -> Iterator[str]:
    sets = task_sets(study.scores, regime)
    for tasks in sets:
        sweep = [
            (sigma, score.iqm)
            for score in study.scores
            if (score.regime, score.tasks) == (regime, tasks)
            and (sigma := StudySurrogate(score.surrogate).sigma) is not None
        ]
        if len(sweep) > 1:
            told = ", ".join(f"σ {sigma:g} ({scale:g}) {iqm:.3f}" for (sigma, scale), iqm in sorted(sweep))
            yield f"{regime}: GIPO by σ (and factor for bad actions){_where(tasks, sets)}: {told}."


def _fresh_against_stale(study: Study) -> Iterator[str]:
    """Compare the regimes of every surrogate that has both, on common tasks and seeds."""
    results = study.results
    for surrogate in results.surrogates:
        fresh, stale = (results.tasks_of(surrogate, regime) for regime in ("fresh", "stale"))
        tasks = tuple(task for task in stale if task in fresh)
        runs = [results.where(surrogate=surrogate, regime=regime) for regime in ("fresh", "stale")]
        seeds = sorted(set(complete_seeds(runs[0], tasks)) & set(complete_seeds(runs[1], tasks)))
        of_fresh, of_stale = (
            score_table(of_regime, seeds=seeds, tasks=tasks, random_returns=study.random_returns) for of_regime in runs
        )
        if of_fresh is not None and of_stale is not None:
            yield (
                f"{surrogate}: IQM {interquartile_mean(of_fresh):.3f} on fresh and "
                f"{interquartile_mean(of_stale):.3f} on stale experience{_where(tasks, {fresh, stale})}, {len(seeds)} "
                "seed(s) of both, after as many updates; a fresh run has simulated many times the env steps."
            )
