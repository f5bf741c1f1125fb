"""Comparison of two evaluations in words: whether the difference is more than noise."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vla_rl.evaluation.conditions import differences, read_conditions
from vla_rl.evaluation.episode_log import EPISODES_FILE, EpisodeResult, read_episodes
from vla_rl.evaluation.pairs import Comparison, compare
from vla_rl.evaluation.perturbed import compare_perturbed
from vla_rl.evaluation.statistics import CONFIDENCE
from vla_rl.reporting.run_layout import EVALUATIONS
from vla_rl.reporting.text import percent


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonReport:
    """Comparison of two policies on the episodes that both played."""

    first: Path
    second: Path
    comparison: Comparison
    caveats: tuple[str, ...]  # conditions that differ, apart from the policy
    perturbed: tuple[
        tuple[str, Comparison], ...
    ] = ()  # `kind:level`, for each perturbation that both were played under

    @property
    def cautions(self) -> list[str]:
        """Return what makes the comparison less than one of policies alone, in words."""
        differing = [f"mind: they differ in {caveat}" for caveat in self.caveats]
        return [*weights_in_words(self.comparison), *differing]

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        values = {
            "first": str(self.first),
            "second": str(self.second),
            **asdict(self.comparison),
            "distinguishable": self.comparison.distinguishable,
            "verdict": verdict(self.comparison),
            "caveats": list(self.caveats),
            **({"perturbed": {name: asdict(one) for name, one in self.perturbed}} if self.perturbed else {}),
        }
        return json.dumps(values, indent=2)

    def __str__(self) -> str:
        result = self.comparison
        lines = [
            f"A  {100 * result.first_rate:5.1f} %  {self.first}",
            f"B  {100 * result.second_rate:5.1f} %  {self.second}",
            f"on {result.pairs} episodes that both played (same task, initial state and seed)"
            + (f"; {result.unpaired} that only one played are left out" if result.unpaired else ""),
            f"A - B  {100 * result.difference:+.1f} points, {interval_in_words(result)}",
            f"only A succeeded in {result.test.only_first}, only B in {result.test.only_second}: "
            f"{mcnemar_in_words(result)} (exact {result.test.p_exact:.2g})",
            verdict(result),
            *(_perturbed_in_words(name, one) for name, one in self.perturbed),
            *self.cautions,
        ]
        return "\n".join(lines)


def _perturbed_in_words(name: str, result: Comparison) -> str:
    return (
        f"{name}: A {100 * result.first_rate:.1f} %, B {100 * result.second_rate:.1f} %, "
        f"A - B {100 * result.difference:+.1f} points ({interval_in_words(result)}, {mcnemar_in_words(result)})"
    )


def interval_in_words(result: Comparison) -> str:
    """Describe the interval of the difference, in points."""
    if result.interval is None:
        return "no interval: the differences vary in no task"
    low, high = 100 * result.interval.low, 100 * result.interval.high
    return f"{percent(CONFIDENCE)} interval {low:+.1f} to {high:+.1f}"


def mcnemar_in_words(result: Comparison) -> str:
    """Describe the test of the difference and its p; pairs of one initial state, one per seed, count as one."""
    clusters = "" if result.initial_states == result.pairs else f" over {result.initial_states} initial states"
    return f"McNemar{clusters} mid-p {result.test.p_mid:.2g}"


def verdict(result: Comparison) -> str:
    """State whether the difference is distinguishable from noise, in one sentence."""
    if result.surprising and result.contradictory:
        return (
            "Nothing can be said: the mean over tasks and the number of episodes won do not favour the same policy. "
            "Evaluate both on equally many episodes of every task."
        )
    if result.distinguishable:
        better = "A" if result.difference > 0 else "B"
        return (
            f"The difference is distinguishable: {better} is better. Two equally good policies would differ this much "
            f"in {_percent(result.test.p_mid)} of such comparisons."
        )
    if result.test.only_first + result.test.only_second == 0:
        return "There is no difference: both succeeded and failed in the same episodes."
    return (
        "The difference is not distinguishable from noise: two equally good policies would differ this much in "
        f"{_percent(result.test.p_mid)} of such comparisons. More episodes may decide it."
    )


def _percent(probability: float) -> str:
    """Format a probability with two digits, and one near 1 without an exponent."""
    return "100 %" if probability >= 0.995 else f"{100 * probability:.2g} %"


def weights_in_words(result: Comparison) -> list[str]:
    """Return a caveat if tasks have different numbers of pairs, because rates and test then weigh tasks differently."""
    fewest, most = result.pairs_per_task
    if fewest == most:
        return []
    return [
        f"mind: tasks have between {fewest} and {most} pairs; the rates and their difference weigh every task alike, "
        "McNemar every pair"
    ]


def compare_evaluations(first: Path, second: Path) -> ComparisonReport:
    """Compare two evaluations pair by pair.

    Args:
        first: the folder of an evaluation, its `results.json` or `episodes.jsonl`, or a run: its newest evaluation.
        second: the other one, in the same form.

    Raises:
        ValueError: one is none of these, or they share no episode.
    """
    folders = [find_evaluation(path) for path in (first, second)]
    if folders[0] == folders[1]:
        raise ValueError(f"--compare: both are {folders[0]}; give two evaluations")
    episodes: list[list[EpisodeResult]] = [read_episodes(folder / EPISODES_FILE) for folder in folders]
    ours, theirs = (read_conditions(folder) for folder in folders)
    caveats = () if ours is None or theirs is None else tuple(differences(ours, theirs, of_policy=False))
    perturbed, otherwise = compare_perturbed(*folders)
    return ComparisonReport(
        first=folders[0],
        second=folders[1],
        comparison=compare(episodes[0], episodes[1]),
        caveats=(*caveats, *otherwise),
        perturbed=perturbed,
    )


def newest_episodes(run: Path) -> Path | None:
    """Return the newest evaluation's episodes below a run's folder; None if there is none."""
    return max((run / EVALUATIONS).rglob(EPISODES_FILE), key=lambda file: file.stat().st_mtime, default=None)


def find_evaluation(path: Path) -> Path:
    """Find the folder with the episodes that a path means.

    Raises:
        ValueError: there is none.
    """
    folder = path.parent if path.is_file() else path
    if (folder / EPISODES_FILE).is_file():
        return folder
    found = newest_episodes(folder)
    if found is None:
        raise ValueError(
            f"--compare: {path} holds no evaluation: expected a folder with {EPISODES_FILE}, or a run with one below "
            f"{EVALUATIONS}/"
        )
    return found.parent
