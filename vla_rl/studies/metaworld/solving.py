"""Env steps after which the runs of a Meta-World study solve their task.

A run has solved its task once `LEVEL` of the training episodes succeed, in the mean over the log points of the latest
tenth of its env steps. It may lose that again, so the last tenth is told beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from statistics import fmean

from vla_rl.reporting.series import series
from vla_rl.reporting.text import percent
from vla_rl.studies.metaworld.results import RunResult, RunTable
from vla_rl.studies.metaworld.sign_test import SignTest, paired_sign_test
from vla_rl.studies.pages import Part

SUCCESS = "rollout/success_rate"
LEVEL = 0.8
WINDOW = 0.1  # of a run's env steps
ROUNDING = 1e-9  # by which a mean of shares may miss the level: ten times 0.8 have the mean 0.7999999999999999


def env_steps_until_solved(result: RunResult) -> int | None:
    """Return the env steps at the first log point whose window reaches `LEVEL`; None if none does.

    The first windows end after a tenth of the env steps: earlier ones would be shorter.
    """
    env_steps, success = series(result.records, SUCCESS, over="env_steps")
    width = WINDOW * result.records[-1]["env_steps"]
    first, total = 0, 0.0
    for last, (at, rate) in enumerate(zip(env_steps, success, strict=True)):
        total += rate
        while env_steps[first] <= at - width:
            total -= success[first]
            first += 1
        if at >= width and total / (last - first + 1) >= LEVEL - ROUNDING:
            return int(at)
    return None


def is_solved_at_the_end(result: RunResult) -> bool:
    """Return whether the last tenth of a run reaches `LEVEL`; such a run has solved its task by then at the latest."""
    env_steps, success = series(result.records, SUCCESS, over="env_steps")
    width = WINDOW * result.records[-1]["env_steps"]
    # It ends where episodes last ended, as the windows of `env_steps_until_solved` do.
    latest = [rate for at, rate in zip(env_steps, success, strict=True) if at > env_steps[-1] - width]
    return bool(latest) and fmean(latest) >= LEVEL - ROUNDING


def solving_part(results: RunTable) -> Part | None:
    """Return a table of all tasks and surrogates; None if no run has solved its task."""
    rows = []
    for task, regime, surrogate, by_seed in results.cells():
        until = [env_steps_until_solved(result) for result in by_seed]
        told = ", ".join("never" if at is None else f"{at:,}" for at in until)
        ended = sum(is_solved_at_the_end(result) for result in by_seed)
        rows.append((task, regime, surrogate, told, f"{ended} of {len(by_seed)}"))
    if all(set(row[3].split(", ")) == {"never"} for row in rows):
        return None
    return Part(
        "Env steps until the task is solved",
        (
            f"Solved: {percent(LEVEL)} of the training episodes succeed, in the mean over the latest tenth of the "
            "run's env steps. A run may lose that again; the last column counts the runs whose last tenth has it.",
        ),
        ("task", "regime", "surrogate", "env steps by seed", "solved at the end"),
        tuple(rows),
    )


def solving_words(results: RunTable) -> Iterator[str]:
    """Yield a sentence about every pair of surrogates of a regime in which some run has solved its task."""
    for regime in results.regimes:
        for first, second in combinations(results.by_surrogate(regime), 2):
            test = solving_test(results.where(regime=regime), first, second)
            if test.higher or test.lower:
                yield (
                    f"{regime}: {first} solves its task earlier than {second} in {test.lower} and later in "
                    f"{test.higher} of {test.pairs} pairs of equal seed and task (sign test p {test.p:.2g}; "
                    f"{test.p_by_seed:.2g} with the pairs of a seed as one)."
                )


def solving_test(results: RunTable, first: str, second: str) -> SignTest:
    """Test which of two surrogates takes more env steps until the task is solved; to never solve it takes the most."""
    return paired_sign_test(results.pairs(first, second, _env_steps_or_never))


def _env_steps_or_never(result: RunResult) -> float:
    at = env_steps_until_solved(result)
    return math.inf if at is None else at
