"""A Meta-World study in words and tables, computed from its runs: the same parts make the page and the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from vla_rl.evaluation.statistics import Interval
from vla_rl.reporting.text import number, percent
from vla_rl.studies.metaworld import StudySurrogate
from vla_rl.studies.metaworld_results import (
    MAX_RETURN,
    STALENESS,
    UTILIZATION,
    Improvement,
    RunResult,
    Score,
    labels,
    paired_returns,
    select,
)

ENOUGH_SEEDS = 5
TITLES = {
    "policy_lag/mean": "mean lag (versions)",
    "policy_lag/p95": "P95 lag (versions)",
    "policy_lag/old_fraction": "old fraction",
    "ratio/abs_log_p95": "P95 of abs(log ρ)",
    "utilization/dead": "dead share",
    "utilization/suppressed": "suppressed share",
    "utilization/near_zero": "near-zero share",
    "utilization/old_share": "old share of the contribution",
    "utilization/ess_old": "ESS of old samples",
    "learner/kl": "KL(behaviour ‖ policy), nat",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A heading with sentences and perhaps a table."""

    title: str
    sentences: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """All that is known of a study."""

    planned: int  # runs
    optimizer_steps: int  # of every run
    recipe: str  # name or path
    results: Sequence[RunResult]
    broken: Sequence[str]  # a sentence about each finished run that cannot be read
    scores: Sequence[Score]
    improvements: Sequence[Improvement]
    random_returns: Mapping[str, float]

    @property
    def regimes(self) -> list[str]:
        """In the order of the grid."""
        return labels(self.results, lambda run: run.regime)


def parts(study: Study) -> list[Part]:
    """Everything, most important first."""
    return [
        Part("In words", tuple(_words(study))),
        _score_part(study),
        _improvement_part(study),
        _return_part(study),
        _closing_part(study),
    ]


def cautions(study: Study) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
    missing = study.planned - len(study.results) - len(study.broken)
    if missing:
        found.append(f"PARTIAL: {missing} of {study.planned} runs are missing.")
    found += [f"LEFT OUT: {sentence}" for sentence in study.broken]
    seeds = _fewest_seeds(study)
    if seeds < ENOUGH_SEEDS:
        found.append(f"{seeds} seed(s): intervals over fewer than {ENOUGH_SEEDS} say nothing. Read the single runs.")
    found.append(
        "Returns are those of training episodes with sampled actions, in the benchmark's units; no benchmark score."
    )
    return found


def _words(study: Study) -> Iterator[str]:
    yield _extent(study)
    for regime in study.regimes:
        yield _staleness(study, regime)
        yield _ranking(study, regime)
        yield from (_pair(study, pair) for pair in study.improvements if pair.regime == regime)
        yield _use(study, regime)
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
    lag, p95, old = (_mean(chosen, name) for name in STALENESS[:3])
    reuse, threshold = _mean(chosen, "replay/ratio"), chosen[0].old_threshold
    drift = [
        f"{surrogate} {number(_mean(select(chosen, surrogate=surrogate), 'ratio/abs_log_p95'))}"
        for surrogate in labels(chosen, lambda run: run.surrogate)
    ]
    return (
        f"{regime}: a decision was used {number(reuse)} times; samples were {number(lag)} versions old in the mean "
        f"(P95 {number(p95)}), {percent(old, digits=1)} of them old, that is {threshold:,} versions or more. "
        f"P95 of |log ρ|: {', '.join(drift)}."
    )


def _ranking(study: Study, regime: str) -> str:
    ranked = [score for score in study.scores if score.regime == regime]
    return f"{regime}: IQM of the normalised score: " + ", ".join(
        f"{score.surrogate} {score.iqm:.3f} ({_between(score.interval)})" for score in ranked
    ) + "."  # fmt: skip


def _pair(study: Study, pair: Improvement) -> str:
    """Who ends higher, and whether that can be told from chance; seeds are paired, for they share the first weights."""
    wins = []
    for task in labels(study.results, lambda run: run.task):
        pairs = paired_returns(study.results, task=task, regime=pair.regime, first=pair.first, second=pair.second)
        wins.append(f"{sum(ours > theirs for ours, theirs in pairs)} of {len(pairs)} on {task}")
    return (
        f"{pair.regime}: a run of {pair.first} ends above one of {pair.second} with probability {pair.probability:.2f} "
        f"({_between(pair.interval, digits=2)}; {_verdict(study, pair)}); with equal seeds {', '.join(wins)}."
    )


def _verdict(study: Study, pair: Improvement) -> str:
    if _fewest_seeds(study) < ENOUGH_SEEDS:
        return "too few seeds to tell from chance, 0.5"
    if pair.interval is None:
        return (
            "redrawing seeds changes nothing; exact sign test of the pairs of equal seed and task, "
            f"{pair.higher} higher and {pair.lower} lower: p = {pair.sign_p:.2g}"
        )
    if pair.interval.low <= 0.5 <= pair.interval.high:
        return "cannot be told from chance, 0.5"
    return "the interval excludes chance, 0.5"


def _fewest_seeds(study: Study) -> int:
    return min((score.seeds for score in study.scores), default=0)


def _use(study: Study, regime: str) -> str:
    told = []
    for surrogate in labels(study.results, lambda run: run.surrogate):
        chosen = select(study.results, regime=regime, surrogate=surrogate)
        if chosen:
            dead, near_zero, ess = (_mean(chosen, f"utilization/{name}") for name in ("dead", "near_zero", "ess_old"))
            told.append(
                f"{surrogate} {percent(dead, digits=1)} dead, {percent(near_zero, digits=1)} near zero"
                + ("" if ess is None else f", ESS of old samples {number(ess)}")
            )
    return f"{regime}: of the action components' gradients: {'; '.join(told)}."


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


def _score_part(study: Study) -> Part:
    randoms = ", ".join(f"{task} {study.random_returns[task]:.0f}" for task in study.random_returns)
    return Part(
        "Scores",
        (f"Normalised score: (return − random) / ({MAX_RETURN:.0f} − random). Return of random actions: {randoms}.",),
        ("regime", "surrogate", "IQM", "95 % interval", "mean", "seeds × tasks"),
        tuple(
            (
                score.regime, score.surrogate, f"{score.iqm:.3f}", _between(score.interval), f"{score.mean:.3f}",
                f"{score.seeds} × {score.tasks}",
            )
            for score in study.scores
        ),
    )  # fmt: skip


def _improvement_part(study: Study) -> Part:
    return Part(
        "Probability of improvement",
        (
            "Of any run of the first against any of the second on the same task; pairs have equal seed and task, and "
            "the exact sign test is two-sided.",
        ),
        ("regime", "first", "second", "P(first > second)", "95 % interval", "pairs higher, lower", "sign test p"),
        tuple(
            (
                pair.regime, pair.first, pair.second, f"{pair.probability:.2f}", _between(pair.interval, digits=2),
                f"{pair.higher}, {pair.lower}", f"{pair.sign_p:.2g}",
            )
            for pair in study.improvements
        ),
    )  # fmt: skip


def _return_part(study: Study) -> Part:
    rows = []
    for task in labels(study.results, lambda run: run.task):
        for regime in study.regimes:
            for surrogate in labels(study.results, lambda run: run.surrogate):
                chosen = select(study.results, task=task, regime=regime, surrogate=surrogate)
                by_seed = sorted(chosen, key=lambda result: result.run.seed)
                if by_seed:
                    returns = ", ".join(f"{result.closing_return:.0f}" for result in by_seed)
                    rows.append((task, regime, surrogate, returns))
    return Part("Closing return of every run", (), ("task", "regime", "surrogate", "return by seed"), tuple(rows))


def _closing_part(study: Study) -> Part:
    metrics = (*STALENESS, "learner/kl", *UTILIZATION)
    rows = []
    for regime in study.regimes:
        for surrogate in labels(study.results, lambda run: run.surrogate):
            chosen = select(study.results, regime=regime, surrogate=surrogate)
            if chosen:
                rows.append((regime, surrogate, *(number(_mean(chosen, name)) for name in metrics)))
    header = ("regime", "surrogate", *(TITLES[name] for name in metrics))
    return Part("Staleness and use of the samples (closing means over runs)", (), header, tuple(rows))


def _mean(results: Sequence[RunResult], metric: str) -> float | None:
    values = [value for result in results if (value := result.closing(metric)) is not None]
    return fmean(values) if values else None


def _between(interval: Interval | None, *, digits: int = 3) -> str:
    return "no interval" if interval is None else f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"
