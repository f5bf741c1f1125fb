"""LIBERO study in sentences and tables, computed only from its jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from vla_rl.evaluation.comparison import interval_in_words, mcnemar_in_words
from vla_rl.evaluation.control import Control
from vla_rl.reporting.text import number, percent
from vla_rl.studies.libero.plan import ACTIONS, UNCHANGED, Actions, Plan
from vla_rl.studies.libero.results import DRIFT, ArmPair, Evaluation, Gain, StudyData
from vla_rl.studies.pages import Part

START_AT_MOST, END_AT_LEAST, GOAL_SEEDS = 0.5, 0.85, 3  # the study's goal: from at most half to most, by RL alone
TITLES = {
    "learner/kl": "KL(behaviour ‖ policy), nat",
    "ratio/abs_log_p95": "P95 of abs(log ρ)",
    "policy_lag/mean": "mean lag (versions)",
    "policy_lag/p95": "P95 lag (versions)",
    "learner/entropy": "entropy, nat",
}
HOW: dict[Actions, str] = {"sampled": "sampled actions", "greedy": "greedy actions"}


def cautions(data: StudyData) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    found = []
    missing = len(data.plan.runs()) - len(data.runs)
    if missing:
        found.append(f"PARTIAL: {missing} of {len(data.plan.runs())} runs are missing.")
    evaluated = sum(data.after(run, actions) is not None for run in data.plan.runs() for actions in ACTIONS)
    if evaluated < len(ACTIONS) * len(data.plan.runs()) and not missing:
        found.append("PARTIAL: not every run has been evaluated.")
    found += [f"LEFT OUT: {sentence}" for sentence in data.broken]
    seeds = min((len(data.of_arm(arm, regime)) for arm, regime in data.arms()), default=0)
    if seeds < GOAL_SEEDS:
        count = "one seed" if seeds == 1 else f"{seeds} seeds"
        found.append(f"{count} of some arm: what another seed would give is not known. Read the single runs.")
    before = data.before("sampled") or data.before("greedy")
    if before is not None:
        found += [f"The start: {sentence}" for sentence in before.trained_there]
    deviations = dict.fromkeys(text for each in data.evaluations.values() for text in each.deviations)
    if deviations:
        found.append(f"No benchmark score: {'; '.join(deviations)}.")
    return found


def words(data: StudyData) -> Iterator[str]:
    """Yield findings, most important first."""
    yield from _goal(data)
    yield _extent(data)
    yield from _start(data)
    for actions in ACTIONS:
        yield from _gains(data, actions)
    for actions in ACTIONS:
        yield from (pair_in_words(pair) for pair in data.pairs() if pair.actions == actions)
    yield from _drift(data)
    for evaluation in data.evaluations.values():
        yield from (control_in_words(evaluation, control) for control in evaluation.controls)


def _goal(data: StudyData) -> Iterator[str]:
    """Judge the goal of the study with sampled actions, arm by arm: reached, not reached, or open."""
    before = data.before("sampled")
    if before is None:
        return
    sampled = [gain for gain in data.gains() if gain.actions == "sampled"]
    unchanged = [gain for gain in sampled if gain.run.arm == UNCHANGED]
    moved = any(gain.comparison.distinguishable for gain in unchanged)
    for arm, regime in data.arms():
        gains = [gain for gain in sampled if _is_of(gain, arm, regime)]
        if arm == UNCHANGED or not gains:
            continue
        missed = moved or before.success_rate > START_AT_MOST
        missed |= any(gain.comparison.first_rate < END_AT_LEAST for gain in gains)
        open_because = [
            *([f"{len(gains)} of {GOAL_SEEDS} seeds have been evaluated"] if len(gains) < GOAL_SEEDS else []),
            *([] if unchanged else [f"{UNCHANGED} has not been evaluated"]),
        ]
        judged = "not reached" if missed else f"open, for {' and '.join(open_because)}" if open_because else "reached"
        yield (
            f"{arm}, {regime}: the goal (from at most {percent(START_AT_MOST)} to at least {percent(END_AT_LEAST)} in "
            f"{GOAL_SEEDS} of {GOAL_SEEDS} seeds, {HOW['sampled']}, while {UNCHANGED} stays) is {judged}: "
            f"{percent(before.success_rate, digits=1)} before, "
            f"{_listed(gain.comparison.first_rate for gain in gains)} after, by seed."
        )


def _extent(data: StudyData) -> str:
    plan, states = data.plan, data.plan.states * len(data.plan.tasks)
    env_steps = fmean([result.env_steps for result in data.runs] or [0])
    minutes = sum(data.seconds.values()) / 60
    return (
        f"{plan.suite}, tasks {', '.join(map(str, plan.tasks))}; {_origin(plan)}; "
        f"{len(data.runs)} of {len(plan.runs())} runs: {', '.join(plan.arms)}, {', '.join(plan.regimes)}, "
        f"{plan.seeds} seed(s). Recipe {plan.recipe}, {plan.optimizer_steps} optimizer steps and {env_steps:,.0f} env "
        f"steps a run. Success is that of {states} held-out episodes: {plan.states} {plan.held_out} initial states "
        f"of each task, the same for all, on which {_untouched(plan)}. The finished jobs took "
        f"{minutes:.0f} minutes, summed."
    )


def _untouched(plan: Plan) -> str:
    """Return what is known not to have used the held-out states; of a given start the study knows nothing."""
    return "no run was trained" if plan.start else "nothing was trained or chosen"


def _origin(plan: Plan) -> str:
    """Return what the start was made from: of a given checkpoint the end of its path."""
    if plan.start is None:
        return f"{plan.demonstrations} demonstrations of each"
    return f"all runs start from {'/'.join(Path(plan.start).parts[-2:])}"


def _start(data: StudyData) -> Iterator[str]:
    if data.start is None:
        return
    rates = ", ".join(f"{percent(rate)} ({step} steps)" for step, rate in data.candidates.items())
    low, high = data.plan.window
    yield (
        f"The start is the policy that was cloned for {data.start} optimizer steps. On {data.plan.choice_states} other "
        f"{data.plan.init_states} states of each task the candidates succeeded in {rates}; the earliest between "
        f"{percent(low)} and {percent(high)} is taken, else the best below, else the earliest of all."
    )
    if data.candidates[data.start] == 0:
        yield "The start never succeeded there, so RL had nothing to learn from but chance."


def _gains(data: StudyData, actions: Actions) -> Iterator[str]:
    before = data.before(actions)
    if before is None:
        return
    for arm, regime in data.arms():
        gains = [gain for gain in data.gains() if gain.actions == actions and _is_of(gain, arm, regime)]
        if gains and arm == UNCHANGED and not any(map(_differs, gains)):
            yield (
                f"{arm}, {regime}, {HOW[actions]}: {percent(before.success_rate, digits=1)} before and after. It is "
                "the start's policy and draws the same random numbers, so this shows that nothing but learning changes "
                "a policy. How far success wanders by chance is to be seen in its training curve."
            )
        elif gains:
            told = "; ".join(f"seed {gain.run.seed} {_gain_in_words(gain)}" for gain in gains)
            yield f"{arm}, {regime}, {HOW[actions]}: {percent(before.success_rate, digits=1)} before; {told}."


def _differs(gain: Gain) -> bool:
    """Return whether any episode ended otherwise than with the start."""
    return gain.comparison.test.only_first + gain.comparison.test.only_second > 0


def _gain_in_words(gain: Gain) -> str:
    result = gain.comparison
    return (
        f"{percent(result.first_rate, digits=1)} after (only after in {result.test.only_first}, only before in "
        f"{result.test.only_second} of {result.pairs}, {mcnemar_in_words(result)}: {verdict(gain)})"
    )


def verdict(gain: Gain) -> str:
    """Return what a run did to the policy, in one or two words."""
    if not gain.comparison.distinguishable:
        return "no difference shown"
    return "better" if gain.comparison.difference > 0 else "worse"


def pair_in_words(pair: ArmPair) -> str:
    """Compare two arms in one sentence."""
    result = pair.comparison
    if result.distinguishable:
        judged = f"{pair.first if result.difference > 0 else pair.second} ends higher"
    else:
        judged = "they cannot be told apart"
    return (
        f"{pair.regime}, {HOW[pair.actions]}: {pair.first} {percent(result.first_rate, digits=1)}, {pair.second} "
        f"{percent(result.second_rate, digits=1)} over {pair.seeds} seed(s) ({interval_in_words(result)}, "
        f"{mcnemar_in_words(result)}): {judged} on these states."
    )


def _drift(data: StudyData) -> Iterator[str]:
    for arm, regime in data.arms():
        if arm != UNCHANGED:
            kl, p95, lag = (number(closing_mean_of(data, arm, regime, name)) for name in DRIFT[:3])
            yield (
                f"{arm}, {regime}: over the last 20 % of env steps KL {kl} nat per action component, P95 of |log ρ| "
                f"{p95}, samples {lag} versions old in the mean."
            )


def control_in_words(evaluation: Evaluation, control: Control) -> str:
    """Describe a control of one policy."""
    return (
        f"{evaluation.subject}, control {control.name}: {percent(control.comparison.first_rate, digits=1)} without it, "
        f"{percent(control.success_rate, digits=1)} with it ({mcnemar_in_words(control.comparison)}): "
        f"{control.meaning}."
    )


def closing_mean_of(data: StudyData, arm: str, regime: str, metric: str) -> float | None:
    """Return the mean over seeds of a metric's closing values; None if no run has it."""
    values = [value for result in data.of_arm(arm, regime) if (value := result.closing(metric)) is not None]
    return fmean(values) if values else None


def parts(data: StudyData) -> list[Part]:
    """Return all parts of the page, words first."""
    return [
        Part("In words", tuple(words(data))),
        *([part] if (part := _success_part(data)).rows else []),
        *([part] if (part := _task_part(data)).rows else []),
        *([part] if (part := _drift_part(data)).rows else []),
    ]


def _success_part(data: StudyData) -> Part:
    rows = [
        (
            f"{gain.run.arm}, {gain.run.regime}",
            str(gain.run.seed),
            gain.actions,
            percent(gain.comparison.second_rate, digits=1),
            percent(gain.comparison.first_rate, digits=1),
            interval_in_words(gain.comparison),
            f"{gain.comparison.test.only_first}, {gain.comparison.test.only_second}",
            f"{gain.comparison.test.p_mid:.2g}",
            verdict(gain),
        )
        for gain in data.gains()
    ]
    header = ("arm", "seed", "actions", "before", "after", "difference", "only after, only before", "McNemar p", "")
    return Part("Success before and after", (), header, tuple(rows))


def _task_part(data: StudyData) -> Part:
    rows = [
        (evaluation.subject, evaluation.actions, *(percent(rate) for rate in evaluation.by_task.values()))
        for evaluation in data.evaluations.values()
    ]
    header = ("policy", "actions", *(f"task {task}" for task in sorted(data.plan.tasks)))
    return Part("Success by task", (), header, tuple(rows))


def _drift_part(data: StudyData) -> Part:
    rows = [
        (f"{arm}, {regime}", *(number(closing_mean_of(data, arm, regime, name)) for name in DRIFT))
        for arm, regime in data.arms()
    ]
    return Part("Drift and lag (closing means over seeds)", (), ("arm", *(TITLES[name] for name in DRIFT)), tuple(rows))


def _is_of(gain: Gain, arm: str, regime: str) -> bool:
    return (gain.run.arm, gain.run.regime) == (arm, regime)


def _listed(rates: Iterator[float] | Sequence[float]) -> str:
    return ", ".join(percent(rate, digits=1) for rate in rates)
