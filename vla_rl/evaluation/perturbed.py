"""Perturbed episodes of an evaluation: their plan, their logs, and the success that a perturbation costs.

Each perturbation has two files below `perturbed/` in the evaluation's folder: its definition, and its log of episodes.
An episode is compared with the unperturbed one of the same task, initial state and seed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vla_rl.envs.kind import PerturbedTasks
from vla_rl.evaluation.control import CONTROLS, episodes_file
from vla_rl.evaluation.episode_log import EpisodeLog, EpisodeResult, read_episodes
from vla_rl.evaluation.eval_results import group_by
from vla_rl.evaluation.pairs import Comparison, compare
from vla_rl.evaluation.statistics import Interval, wilson_interval
from vla_rl.evaluation.suite_plans import SuitePlan
from vla_rl.evaluation.video import Keep, count_videos, recorded_builders
from vla_rl.files import atomic_write_json, atomic_write_text
from vla_rl.run.plan import Plan, plan_policy
from vla_rl.workers.episodes import EpisodeJob

FOLDER = "perturbed"
TABLE_FILE = "perturbations.csv"
_MANY = 10  # comparisons, from which on a reader must expect that some mislead


@dataclass(frozen=True, slots=True)
class PerturbedSuite:
    """One suite under all perturbations of an evaluation, as one plan, so that the policy is built once."""

    plan: Plan  # tasks and environments: the first task under every perturbation, then the second task, ...
    jobs: list[EpisodeJob]
    perturbations: tuple[PerturbedTasks, ...]

    def of(self, job: EpisodeJob) -> PerturbedTasks:
        """Return the perturbation of an episode."""
        return self._at(job.task_index)

    def filmed(self, folder: Path, *, keep: Keep, seeds: Sequence[int]) -> PerturbedSuite:
        """Return the suite with environments that record videos, in a folder for each perturbation.

        Args:
            folder: folder of the videos.
            keep: which videos to keep.
            seeds: seeds of the evaluation.
        """
        under = [self._at(place) for place in range(len(self.plan.env.tasks))]
        builders = recorded_builders(
            self.plan,
            [video_folder(folder, one) for one in under],
            keep=keep,
            seeds=seeds,
            titles=[
                f"{one.kind}:{one.level}: {task.language}" for one, task in zip(under, self.plan.env.tasks, strict=True)
            ],
        )
        return replace(self, plan=replace(self.plan, env=replace(self.plan.env, builders=builders)))

    def _at(self, place: int) -> PerturbedTasks:
        return self.perturbations[place % len(self.perturbations)]


def video_folder(folder: Path, perturbation: PerturbedTasks) -> Path:
    """Return the folder of a perturbation's videos, below that of all videos."""
    return folder / f"{perturbation.kind}_{perturbation.level}"


def perturbed_suite(suite: SuitePlan, asked: str) -> PerturbedSuite:
    """Plan the perturbed episodes of a suite: those of the unperturbed evaluation, under each perturbation.

    Raises:
        ValueError: a perturbation does not exist, or the environment has none.
    """
    plan = suite.plan
    perturbations = plan.setup.env.perturbed(plan.env, asked)
    count, places = len(perturbations), range(len(plan.env.tasks))
    tasks = tuple(one.tasks[place] for place in places for one in perturbations)
    env = replace(
        plan.env,
        tasks=tasks,
        builders=tuple(one.builders[place] for place in places for one in perturbations),
        num_init_states=tuple(plan.env.num_init_states[place] for place in places for _ in perturbations),
        filming_builders=tuple(
            one.filming_builders[place] for place in places for one in perturbations if one.filming_builders
        ),
    )
    policy = plan_policy(plan.setup, only_acts=True, tasks=tasks)
    by_task = group_by(suite.jobs, lambda job: job.task_index)
    jobs = [
        replace(job, task_index=task * count + number)
        for task, own in by_task.items()
        for number in range(count)
        for job in own
    ]
    numbered = [replace(job, job_id=number) for number, job in enumerate(jobs)]
    return PerturbedSuite(replace(plan, env=env, policy=policy), numbered, perturbations)


def define(folder: Path, suites: Iterable[PerturbedSuite]) -> None:
    """Write the definitions of all perturbations into an evaluation's folder.

    Raises:
        ValueError: it holds one of the same name with other numbers; episodes of the two are never mixed.
    """
    for suite in suites:
        for one in suite.perturbations:
            _define(folder, one)


class PerturbedLogs:
    """Logs of all perturbations of an evaluation.

    Raises:
        ValueError: a log is broken.
    """

    def __init__(self, folder: Path, suites: Iterable[PerturbedSuite]) -> None:
        self._stack = ExitStack()
        self._logs: dict[tuple[str, int], EpisodeLog] = {}
        for kind, level in dict.fromkeys((one.kind, one.level) for suite in suites for one in suite.perturbations):
            log = EpisodeLog(_file(folder, kind, level, "jsonl"))
            self._logs[kind, level] = self._stack.enter_context(log)

    def of(self, perturbation: PerturbedTasks) -> EpisodeLog:
        """Return the log of a perturbation."""
        return self._logs[perturbation.kind, perturbation.level]

    @property
    def episodes(self) -> list[EpisodeResult]:
        """Return the episodes of all logs."""
        return [episode for log in self._logs.values() for episode in log.episodes]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _file(folder: Path, kind: str, level: int, suffix: str) -> Path:
    return folder / FOLDER / f"{kind}_{level}.{suffix}"


def _define(folder: Path, perturbation: PerturbedTasks) -> None:
    """Write a perturbation's definition, or check the one that is there; instructions of more suites are added.

    Raises:
        ValueError: it is another one; episodes of two definitions are never mixed.
    """
    path = _file(folder, perturbation.kind, perturbation.level, "json")
    suite = perturbation.tasks[0].suite
    texts = {suite: perturbation.definition.get("instructions", {})}
    new = {**perturbation.definition, "instructions": texts}
    if path.exists():
        there = _read_definition(path)
        known = there["instructions"]
        if {**there, "instructions": known.get(suite, texts[suite])} != {**new, "instructions": texts[suite]}:
            raise ValueError(
                f"--perturb: {path} defines {perturbation.kind}:{perturbation.level} differently, as "
                f"{there['numbers']}; now it is {new['numbers']}. Episodes of two definitions are never mixed. "
                "Choose another --out"
            )
        new["instructions"] = {**known, **texts}
    path.parent.mkdir(exist_ok=True)
    atomic_write_json(path, new)


def _read_definition(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {"kind", "level", "group", "what", "numbers", "source", "instructions"} <= found.keys():
            return found
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected the definition of a perturbation, found something else") from error
    raise ValueError(f"{path}: expected the definition of a perturbation, found something else")


def count_perturbed_videos(
    folder: Path, videos: Path, suites: Iterable[PerturbedSuite], *, keep: Keep
) -> tuple[int, int]:
    """Count the episodes of these perturbations that should have a video: those that have one, and those without.

    Args:
        folder: folder of the evaluation.
        videos: folder of all its videos.
        suites: perturbations that were asked for.
        keep: of which episodes there should be videos.
    """
    asked = {(one.kind, one.level): one for suite in suites for one in suite.perturbations}
    counts = [
        count_videos(video_folder(videos, one), read_episodes(_file(folder, kind, level, "jsonl")), keep=keep)
        for (kind, level), one in asked.items()
    ]
    return sum(found for found, _ in counts), sum(missed for _, missed in counts)


def stored_definitions(folder: Path) -> list[dict[str, Any]]:
    """Return the definitions of all perturbations in an evaluation's folder, by group, kind and level.

    Raises:
        ValueError: a file is broken.
    """
    found = [_read_definition(path) for path in (folder / FOLDER).glob("*.json")]
    return sorted(found, key=lambda one: (one["group"], one["kind"], one["level"]))


@dataclass(frozen=True, slots=True)
class PerturbedResult:
    """Success of one suite under one perturbation, or under a control."""

    suite: str
    kind: str  # of a control: `control blind`, `control instruction`
    level: int | None  # None: a control
    what: str
    episodes: int
    successes: int
    success_rate: float  # mean over tasks
    wilson: Interval  # of all episodes as one sample
    comparison: Comparison  # the first is the policy without the perturbation: `difference` is the drop

    @property
    def label(self) -> str:
        """Return `kind:level`."""
        return self.kind if self.level is None else f"{self.kind}:{self.level}"


def stored_results(
    folder: Path, episodes: Sequence[EpisodeResult]
) -> tuple[tuple[PerturbedResult, ...], tuple[str, ...]]:
    """Return the perturbations in an evaluation's folder, compared pair by pair, and what must be said about them.

    Args:
        folder: folder of the evaluation.
        episodes: its unperturbed episodes.

    Raises:
        ValueError: a file is broken.
    """
    plain = group_by(sorted(episodes, key=lambda episode: episode.key), lambda episode: episode.suite)
    found, gaps = [], []
    for definition in stored_definitions(folder):
        kind, level = definition["kind"], definition["level"]
        log = _file(folder, kind, level, "jsonl")
        played = read_episodes(log) if log.exists() else []
        if len(played) < len(episodes):
            gaps.append(
                f"{kind}:{level} has {len(played)} of {len(episodes)} episodes; --perturb {kind}:{level} plays the "
                "others."
            )
        found += _by_suite(plain, played, kind, level, definition["what"])
    if not found:
        return (), tuple(gaps)
    for name in CONTROLS:
        log = folder / episodes_file(name)
        played = read_episodes(log) if log.exists() else []
        found += _by_suite(plain, played, f"control {name}", None, "see the control")
    count = sum(one.level is not None for one in found)
    if count >= _MANY:
        gaps.append(
            f"{count} perturbations are each compared with the unperturbed episodes; of comparisons without any "
            "difference, one in twenty has a p below 0.05."
        )
    return tuple(sorted(found, key=lambda one: one.suite)), tuple(gaps)


def _by_suite(
    plain: Mapping[str, Sequence[EpisodeResult]],
    played: Sequence[EpisodeResult],
    kind: str,
    level: int | None,
    what: str,
) -> list[PerturbedResult]:
    by_suite = group_by(played, lambda episode: episode.suite)
    results = []
    for suite in plain.keys() & by_suite.keys():
        comparison = compare(plain[suite], by_suite[suite])
        successes, count = sum(it.success for it in by_suite[suite]), len(by_suite[suite])
        results.append(
            PerturbedResult(
                suite=suite,
                kind=kind,
                level=level,
                what=what,
                episodes=count,
                successes=successes,
                success_rate=comparison.second_rate,
                wilson=wilson_interval(successes, count),
                comparison=comparison,
            )
        )
    return results


def rows(results: Iterable[PerturbedResult]) -> list[dict[str, Any]]:
    """Return a flat row for each result; rates and drops from 0 to 1."""
    return [_row(result) for result in results]


def _row(result: PerturbedResult) -> dict[str, Any]:
    drop = result.comparison.interval
    return {
        "suite": result.suite,
        "kind": result.kind,
        "level": "" if result.level is None else result.level,
        "episodes": result.episodes,
        "successes": result.successes,
        "success_rate": result.success_rate,
        "wilson_low": result.wilson.low,
        "wilson_high": result.wilson.high,
        "pairs": result.comparison.pairs,
        "unperturbed_rate": result.comparison.first_rate,
        "drop": result.comparison.difference,
        "drop_low": "" if drop is None else drop.low,
        "drop_high": "" if drop is None else drop.high,
        "mcnemar_mid_p": result.comparison.test.p_mid,
    }


def write_table(folder: Path, results: Sequence[PerturbedResult]) -> None:
    """Write `perturbations.csv`."""
    table = io.StringIO()
    written = rows(results)
    writer = csv.DictWriter(table, fieldnames=list(written[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(written)
    atomic_write_text(folder / TABLE_FILE, table.getvalue())


def table_in_words(results: Sequence[PerturbedResult]) -> list[str]:
    """Return a table in lines: success, and the drop against the same episodes without the perturbation, in points."""
    lines = []
    for suite, own in group_by(results, lambda result: result.suite).items():
        lines += [
            f"{suite}: success, and its drop against the same episodes unperturbed, with 95 % intervals",
            f"{'':<20} {'success':>9} {'rate':>6}  {'interval':<13} {'drop':>6}  {'interval':<16} McNemar",
            *map(_line, own),
        ]
    return lines


def _line(result: PerturbedResult) -> str:
    drop, wilson = result.comparison.interval, result.wilson
    spread = "" if drop is None else f"{100 * drop.low:+.1f} to {100 * drop.high:+.1f}"
    return (
        f"{result.label:<20} {f'{result.successes}/{result.episodes}':>9} {100 * result.success_rate:>5.1f}%  "
        f"{f'{100 * wilson.low:.1f} to {100 * wilson.high:.1f}':<13} {100 * result.comparison.difference:>+6.1f}  "
        f"{spread:<16} {result.comparison.test.p_mid:.2g}"
    )


def compare_perturbed(first: Path, second: Path) -> tuple[tuple[tuple[str, Comparison], ...], tuple[str, ...]]:
    """Compare two evaluations under every perturbation that both have, episode by episode.

    Args:
        first: folder of one evaluation.
        second: folder of another.

    Returns:
        `kind:level` with the comparison, and a caveat about each that the two define otherwise.

    Raises:
        ValueError: a file is broken.
    """
    ours, theirs = ({(it["kind"], it["level"]): it for it in stored_definitions(one)} for one in (first, second))
    compared, caveats = [], []
    for kind, level in (key for key in ours if key in theirs):
        label = f"{kind}:{level}"
        if ours[kind, level]["numbers"] != theirs[kind, level]["numbers"]:
            caveats.append(f"{label}: {ours[kind, level]['numbers']} and {theirs[kind, level]['numbers']}; left out")
            continue
        logs = [_file(folder, kind, level, "jsonl") for folder in (first, second)]
        episodes = [read_episodes(log) if log.exists() else [] for log in logs]
        if {it.key for it in episodes[0]} & {it.key for it in episodes[1]}:
            compared.append((label, compare(*episodes)))
    return tuple(compared), tuple(caveats)
