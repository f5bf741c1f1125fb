"""Study of groups in sentences and tables, computed from its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vla_rl.evaluation.comparison import interval_in_words, mcnemar_in_words
from vla_rl.evaluation.statistics import Interval
from vla_rl.reporting.text import number, percent
from vla_rl.studies.grouped.plan import (
    FRESH_LAG,
    KEEP,
    METHODS,
    REPLAY_LAG,
    SIZE,
    GroupPlan,
    Start,
)
from vla_rl.studies.grouped.results import FasterThan, Gain, GroupResult, MethodSummary, mixed_share, select
from vla_rl.studies.pages import Part

ENOUGH_SEEDS = 5
CLEAR = 0.5  # an interval of a probability of being faster on one side of this shows a difference


@dataclass(frozen=True, slots=True)
class GroupStudy:
    """Data of a study."""

    plan: GroupPlan
    results: Sequence[GroupResult]
    broken: Sequence[str]  # a sentence about each run that cannot be read
    summaries: Sequence[MethodSummary]
    comparisons: Sequence[FasterThan]
    gains: Sequence[Gain] = ()
    unread: Sequence[str] = ()  # a sentence about each evaluation that cannot be read


def cautions(study: GroupStudy) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    found = []
    missing = len(study.plan.runs()) - len(study.results) - len(study.broken)
    if missing:
        found.append(f"PARTIAL: {missing} of {len(study.plan.runs())} runs are missing.")
    found += [f"LEFT OUT: {sentence}" for sentence in (*study.broken, *study.unread)]
    for start in study.plan.starts:
        seeds = [summary.seeds for summary in study.summaries if summary.start == start.name]
        if seeds and min(seeds) < ENOUGH_SEEDS:
            found.append(
                f"Start {start.name}: {_counted(min(seeds), 'seed')} of some method; intervals over fewer than "
                f"{ENOUGH_SEEDS} say nothing. Read the single runs."
            )
    missing_after = sum(start.states > 0 for start in map(study.plan.start, (it.run for it in study.results)))
    missing_after -= len(study.gains) + len(study.unread)
    if missing_after > 0:
        found.append(f"PARTIAL: {missing_after} finished runs have not been evaluated.")
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
        *([_held_out_part(study)] if study.gains else []),
        _groups_part(study),
        _comparison_part(study),
        _methods_part(study),
    ]


def _words(study: GroupStudy) -> Iterator[str]:
    plan, results = study.plan, study.results
    yield (
        f"{len(results)} of {len(plan.runs())} runs of the recipe {plan.recipe}: "
        f"{_counted(len(plan.methods), 'method')}, {_counted(len(plan.starts), 'start')}, "
        f"{_counted(plan.seeds, 'seed')}. Intervals are 95 % bootstrap intervals over seeds."
    )
    for start in plan.starts:
        own = [summary for summary in study.summaries if summary.start == start.name]
        if own:
            yield _ranking(start, own)
            if min(summary.seeds for summary in own) >= ENOUGH_SEEDS:
                yield from _clear_differences(study, start)
            yield _updates(start, own)
            yield from _waste(study, start)
            yield from _held_out(study, start)
    early = [result.run.name for result in results if result.ended_early]
    if early:
        yield f"Ended early, with nothing left to learn from because what they played succeeded: {', '.join(early)}."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _ranking(start: Start, summaries: Sequence[MethodSummary]) -> str:
    ordered = sorted(summaries, key=lambda summary: (-summary.reached / summary.seeds, summary.episodes))
    told = [
        f"{METHODS[each.method].title} {each.episodes:,.0f}{_in_brackets(each.interval)}"
        + ("" if each.reached == each.seeds else f", reached by {each.reached} of {each.seeds}")
        for each in ordered
    ]
    return f"From {_start(start)}, episodes until {percent(start.target, digits=1)}: {'; '.join(told)}."


def _start(start: Start) -> str:
    if start.success is not None:
        return f"a start that succeeds at {percent(start.success)}"
    return "the recipe's own policy" if start.checkpoint is None else "the given checkpoint"


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


def _held_out(study: GroupStudy, start: Start) -> Iterator[str]:
    gains = [gain for gain in study.gains if gain.run.start == start.name]
    if not gains:
        return
    before = gains[0].comparison
    told = "; ".join(
        f"{METHODS[gain.run.method].title}, seed {gain.run.seed}, {percent(gain.comparison.first_rate)} "
        f"({mcnemar_in_words(gain.comparison)})"
        for gain in gains
    )
    yield (
        f"On {before.pairs} held-out episodes, with sampled actions, the start succeeds in "
        f"{percent(before.second_rate)}, and the policies that the runs ended with in: {told}."
    )


def _held_out_part(study: GroupStudy) -> Part:
    rows = [
        (
            gain.run.start, gain.run.method, str(gain.run.seed), percent(gain.comparison.second_rate, digits=1),
            percent(gain.comparison.first_rate, digits=1), interval_in_words(gain.comparison),
            f"{gain.comparison.test.only_first}, {gain.comparison.test.only_second}",
            f"{gain.comparison.test.p_mid:.2g}",
        )
        for gain in study.gains
    ]  # fmt: skip
    told = (
        "Policies at the end of their budget, with sampled actions, on initial states that no training used, the same "
        "for all. A run may have been better before its end.",
    )
    header = ("start", "method", "seed", "before", "after", "difference", "only after, only before", "McNemar p")
    return Part("Before and after on held-out states", told, header, tuple(rows))


def _noise(start: Start) -> str:
    return (
        f"{start.name}: ±{percent(start.deviation, digits=1)} at {percent(start.target, digits=1)} over "
        f"{start.window:,} episodes"
    )


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
    limits = ", ".join(f"start {start}: {limit:,}" for start, limit in _limits(study).items())
    header = (
        "start", "target", "window", "method", "reached", "episodes until, mean", "95 % interval", "by seed",
        "closing success", "optimizer steps", "seconds",
    )  # fmt: skip
    told = (
        "Success is measured over the last episodes of a window, which looks back by half a window in the mean, and "
        "after updates: a method that makes few of them is seen to arrive later, by one of its updates at most. A run "
        "that did not reach the target stands with the episodes of its budget, marked +. The budget is in env steps, "
        "so a policy that fails plays fewer, longer episodes: means count at most the episodes that every run of the "
        f"start had ({limits}).",
        "Standard deviation of the measured success, for independent episodes: "
        f"{'; '.join(map(_noise, study.plan.starts))}. The {SIZE} episodes of a group share an initial state: where it "
        f"decides the outcome, the deviation of a method with groups is up to √{SIZE} times as large. The first "
        "crossing of a noisy curve comes early, for all methods alike.",
    )
    return Part("Episodes until the target", told, header, tuple(rows))


def _limits(study: GroupStudy) -> dict[str, int]:
    """Return the episodes up to which the means of each start count."""
    return {summary.start: summary.limit for summary in study.summaries}


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
    told = (
        "Of any run of the first against any of the second from the same start. A run that did not reach the target is "
        "slower than every one that did; a tie, also of two such runs, counts half.",
    )
    return Part("Probability of being faster", told, ("start", "first", "second", "P(first faster)", "95 %"), rows)


def _methods_part(study: GroupStudy) -> Part:
    rows = tuple((name, METHODS[name].title, _settings(name, study.plan.starts[0])) for name in study.plan.methods)
    told = (
        "All have the recipe's network, and the recipe's learning rates, held constant after its warm-up whatever its "
        "schedule is: the methods make different numbers of updates of a budget of env steps.",
        *_batches(study.plan.starts[0]),
    )
    return Part("Methods", told, ("method", "what it is", "settings"), rows)


def _batches(start: Start) -> Iterator[str]:
    if start.fresh_batch is None:
        yield "All have the recipe's batch: 64 episodes per update with the recipe gates."
    else:
        yield (
            f"Over replay a batch is the recipe's, and fresh it is {start.fresh_batch} segments: the new part of that. "
            "So every method makes an update after about as many new episodes, unless groups are left out."
        )
    if start.capacity is not None:
        yield f"The ring of all methods holds {start.capacity:,} decisions, because groups need more than the recipe's."


def _settings(name: str, start: Start) -> str:
    method = METHODS[name]
    experience = (
        f"every decision used up to {start.replay_ratio:g} times, at most {REPLAY_LAG} versions old"
        if method.over_replay
        else f"at most {FRESH_LAG} version old"
        if method.has_critic
        else "every group used once"
    )
    kept = f", groups kept if {KEEP[0]:g} ≤ mean ≤ {KEEP[1]:g}" if method.keeps else ""
    clipping = "" if method.over_replay else f", clipped at 0.2 below and {method.clip_high:g} above"
    return f"{experience}{kept}{clipping}"
