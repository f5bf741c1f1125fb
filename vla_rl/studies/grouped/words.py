"""Study of groups in sentences and tables, computed from its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vla_rl.evaluation.statistics import Interval
from vla_rl.reporting.text import number, percent
from vla_rl.studies.grouped.plan import (
    FRESH_LAG,
    KEEP,
    METHODS,
    REPLAY_LAG,
    REPLAY_RATIO,
    SIZE,
    GroupPlan,
    Start,
)
from vla_rl.studies.grouped.results import FasterThan, GroupResult, MethodSummary, mixed_share, select
from vla_rl.studies.pages import Part

ENOUGH_SEEDS = 5
CLEAR = 0.5  # an interval of a probability of being faster on one side of this shows a difference


@dataclass(frozen=True, slots=True)
class GroupStudy:
    """Data of a study."""

    plan: GroupPlan
    results: Sequence[GroupResult]
    broken: Sequence[str]
    summaries: Sequence[MethodSummary]
    comparisons: Sequence[FasterThan]


def cautions(study: GroupStudy) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    found = []
    missing = len(study.plan.runs()) - len(study.results) - len(study.broken)
    if missing:
        found.append(f"PARTIAL: {missing} of {len(study.plan.runs())} runs are missing.")
    found += [f"LEFT OUT: {sentence}" for sentence in study.broken]
    for start in study.plan.starts:
        seeds = [summary.seeds for summary in study.summaries if summary.start == start.name]
        if seeds and min(seeds) < ENOUGH_SEEDS:
            found.append(
                f"Start {start.name}: {min(seeds)} seed(s) of some method; intervals over fewer than {ENOUGH_SEEDS} "
                "say nothing. Read the single runs."
            )
    found.append(
        "One recipe and one learning rate for all methods, not tuned for any of them: this compares what they need "
        "with these settings, on this task."
    )
    return found


def parts(study: GroupStudy) -> list[Part]:
    """Return all parts, most important first."""
    return [
        Part("In words", tuple(_words(study))),
        _episodes_part(study),
        _groups_part(study),
        _comparison_part(study),
        _methods_part(study),
    ]


def _words(study: GroupStudy) -> Iterator[str]:
    plan, results = study.plan, study.results
    yield (
        f"{len(results)} of {len(plan.runs())} runs of the recipe {plan.recipe}: {len(plan.methods)} methods, "
        f"{len(plan.starts)} starts, {plan.seeds} seeds. Intervals are 95 % bootstrap intervals over seeds."
    )
    for start in plan.starts:
        own = [summary for summary in study.summaries if summary.start == start.name]
        if own:
            yield _ranking(start, own)
            if min(summary.seeds for summary in own) >= ENOUGH_SEEDS:
                yield from _clear_differences(study, start)
            yield _updates(start, own)
            yield from _waste(study, start)
    early = [result.run.name for result in results if result.ended_early]
    if early:
        yield f"Ended early, with nothing left to learn from because what they played succeeded: {', '.join(early)}."


def _ranking(start: Start, summaries: Sequence[MethodSummary]) -> str:
    ordered = sorted(summaries, key=lambda summary: (-summary.reached / summary.seeds, summary.episodes))
    told = [
        f"{METHODS[each.method].title} {each.episodes:,.0f}{_in_brackets(each.interval)}"
        + ("" if each.reached == each.seeds else f", reached by {each.reached} of {each.seeds}")
        for each in ordered
    ]
    return f"From {_start(start)}, episodes until {percent(start.target, digits=1)}: {'; '.join(told)}."


def _start(start: Start) -> str:
    known = "its own success" if start.success is None else percent(start.success)
    return f"a start that succeeds at {known}"


def _in_brackets(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval.low:,.0f} to {interval.high:,.0f})"


def _clear_differences(study: GroupStudy, start: Start) -> Iterator[str]:
    """Report which pairs of methods differ more than chance explains, and which do not."""
    clear, open_ones = [], []
    for pair in study.comparisons:
        if pair.start != start.name:
            continue
        first, second = METHODS[pair.first].title, METHODS[pair.second].title
        if pair.probability in (0.0, 1.0) or (
            pair.interval is not None and not pair.interval.low <= CLEAR <= pair.interval.high
        ):
            faster, slower = (first, second) if pair.probability > CLEAR else (second, first)
            clear.append(f"{faster} before {slower}")
        else:
            open_ones.append(f"{first} and {second}")
    if clear:
        yield f"Start {start.name}, told apart by these seeds: {'; '.join(clear)}."
    if open_ones:
        yield f"Start {start.name}, not told apart: {'; '.join(open_ones)}."


def _updates(start: Start, summaries: Sequence[MethodSummary]) -> str:
    told = ", ".join(f"{METHODS[each.method].title} {each.optimizer_steps:,.0f}" for each in summaries)
    return f"Start {start.name}, updates in the budget of episodes: {told}."


def _waste(study: GroupStudy, start: Start) -> Iterator[str]:
    shares = [
        summary.mixed_at_first
        for summary in study.summaries
        if summary.start == start.name and summary.mixed_at_first is not None
    ]
    if not shares:
        return
    measured = sum(shares) / len(shares)
    known = "" if start.success is None else f"; with independent episodes it is {percent(mixed_share(start.success))}"
    yield f"Start {start.name}: of the first groups {percent(measured)} had both outcomes{known}."


def _episodes_part(study: GroupStudy) -> Part:
    rows = []
    for each in study.summaries:
        start = next(start for start in study.plan.starts if start.name == each.start)
        rows.append(
            (
                each.start, percent(start.target, digits=1), f"{start.window:,}", each.method,
                f"{each.reached} of {each.seeds}", f"{each.episodes:,.0f}",
                "no interval" if each.interval is None else f"{each.interval.low:,.0f} to {each.interval.high:,.0f}",
                ", ".join(
                    f"{result.episodes_until:,}" + ("+" if result.reached is None else "")
                    for result in select(study.results, start=each.start, method=each.method)
                ),
                percent(each.closing_success, digits=1), f"{each.optimizer_steps:,.0f}", f"{each.seconds:.0f}",
            )
        )  # fmt: skip
    header = (
        "start", "target", "window", "method", "reached", "episodes until, mean", "95 % interval", "by seed",
        "closing success", "optimizer steps", "seconds",
    )  # fmt: skip
    told = (
        "Success is measured over the last episodes of a window, which looks back by half a window in the mean, and "
        "after updates: a method that makes few of them is seen to arrive later, by one of its updates at most. A run "
        "that did not reach the target counts with its budget, marked +: such means are lower bounds.",
    )
    return Part("Episodes until the target", told, header, tuple(rows))


def _groups_part(study: GroupStudy) -> Part:
    rows = []
    for each in study.summaries:
        start = next(start for start in study.plan.starts if start.name == each.start)
        if each.mixed_at_first is not None:
            known = "unknown" if start.success is None else percent(mixed_share(start.success), digits=1)
            rows.append(
                (
                    each.start, each.method, known, percent(each.mixed_at_first, digits=1),
                    number(each.episodes_per_useful),
                )
            )  # fmt: skip
    told = (
        f"Groups have {SIZE} episodes. The first column is 1 − p^{SIZE} − (1 − p)^{SIZE}; the second was measured in "
        "the first window, in which the policy changes already. Episodes per useful group are the mean over the run.",
    )
    header = ("start", "method", "mixed groups, independent episodes", "mixed at first", "episodes per useful group")
    return Part("What groups cost", told, header, tuple(rows))


def _comparison_part(study: GroupStudy) -> Part:
    rows = tuple(
        (
            pair.start, pair.first, pair.second, f"{pair.probability:.2f}",
            "no spread" if pair.interval is None else f"{pair.interval.low:.2f} to {pair.interval.high:.2f}",
        )
        for pair in study.comparisons
    )  # fmt: skip
    told = ("Of any run of the first against any of the second from the same start, a tie counting half.",)
    return Part("Probability of being faster", told, ("start", "first", "second", "P(first faster)", "95 %"), rows)


def _methods_part(study: GroupStudy) -> Part:
    rows = tuple((name, METHODS[name].title, _settings(name)) for name in study.plan.methods)
    told = ("All have the recipe's network, learning rate and batch: 64 episodes per update with the recipe gates.",)
    return Part("Methods", told, ("method", "what it is", "settings"), rows)


def _settings(name: str) -> str:
    method = METHODS[name]
    experience = (
        f"every decision used up to {REPLAY_RATIO} times, at most {REPLAY_LAG} versions old"
        if method.over_replay
        else f"at most {FRESH_LAG} version old"
        if method.has_critic
        else "every group used once"
    )
    kept = f", groups kept if {KEEP[0]:g} ≤ mean ≤ {KEEP[1]:g}" if method.keeps else ""
    clipping = "" if method.over_replay else f", clipped at 0.2 below and {method.clip_high:g} above"
    return f"{experience}{kept}{clipping}"
