"""Finished jobs of a LIBERO study: runs and evaluations, read from what the program wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from vla_rl.evaluation.control import Control, stored_controls
from vla_rl.evaluation.episode_log import EPISODES_FILE, EpisodeResult, read_episodes
from vla_rl.evaluation.eval_results import group_by
from vla_rl.evaluation.pairs import Comparison, compare
from vla_rl.evaluation.video import VIDEOS
from vla_rl.files import read_json_object
from vla_rl.reporting.manifest import MANIFEST_FILE
from vla_rl.reporting.metrics_file import METRICS_FILE, read_metrics
from vla_rl.reporting.run_folder import RECIPE_FILE, RESULTS_FILE
from vla_rl.reporting.series import Records, closing_mean, series
from vla_rl.studies.libero.plan import ACTIONS, UNCHANGED, Actions, Plan, StudyRun
from vla_rl.studies.libero.runner import read_study
from vla_rl.studies.libero.stages import (
    JOB_FILE,
    JOBS,
    chosen_step,
    success_of_candidates,
)

BEFORE = "before"
DRIFT = ("learner/kl", "ratio/abs_log_p95", "policy_lag/mean", "policy_lag/p95", "learner/entropy")


@dataclass(frozen=True, slots=True)
class RunResult:
    """One finished run."""

    run: StudyRun
    records: Records
    seconds: float  # wall clock, start to end
    recipe: str  # YAML
    manifest: Mapping[str, Any]

    @property
    def env_steps(self) -> int:
        """Return the control steps that the run simulated."""
        return int(self.records[-1]["env_steps"])

    def curve(self) -> tuple[list[float], list[float]]:
        """Return env steps and the success rate of the latest training episodes."""
        return series(self.records, "rollout/success_rate", over="env_steps")

    def closing(self, metric: str) -> float | None:
        """Return the mean of a metric over the last 20 % of env steps; None if the run has none."""
        return closing_mean(self.records, metric)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Episodes of the start or of a run's policy on the held-out states."""

    subject: str  # `BEFORE`, or the name of a run
    actions: Actions
    episodes: Sequence[EpisodeResult]
    controls: tuple[Control, ...]
    deviations: tuple[str, ...]  # from the benchmark's protocol
    trained_there: tuple[str, ...] = ()  # a sentence if the policy was trained on the states that it is evaluated on

    @property
    def success_rate(self) -> float:
        """Return the mean over tasks of the tasks' success rates."""
        return fmean(self.by_task.values())

    @property
    def by_task(self) -> dict[int, float]:
        """Return the success rate of every task by its id."""
        tasks = group_by(self.episodes, lambda episode: episode.task_id)
        return {task: fmean(episode.success for episode in own) for task, own in sorted(tasks.items())}


@dataclass(frozen=True, slots=True)
class Gain:
    """A run's policy beside the start on the same states."""

    run: StudyRun
    actions: Actions
    comparison: Comparison  # the first is the run's policy


@dataclass(frozen=True, slots=True)
class ArmPair:
    """Two arms' policies on the same states, over the seeds that both have."""

    regime: str
    actions: Actions
    first: str
    second: str
    seeds: int
    comparison: Comparison  # pairs of one state over all seeds count as one


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyData:
    """Everything that a study has produced so far."""

    plan: Plan
    candidates: Mapping[int, float]  # success by optimizer steps of the cloned policy; empty until all are evaluated
    start: int | None  # optimizer steps of the chosen candidate; None: not chosen yet, or given
    runs: Sequence[RunResult]
    evaluations: Mapping[tuple[str, Actions], Evaluation]
    seconds: Mapping[str, float]  # of every finished job, by name
    videos: Mapping[str, Sequence[Path]]  # by subject
    broken: Sequence[str]  # a sentence about each finished job that cannot be read

    def before(self, actions: Actions) -> Evaluation | None:
        """Return the evaluation of the start; None if it has not finished."""
        return self.evaluations.get((BEFORE, actions))

    def after(self, run: StudyRun, actions: Actions) -> Evaluation | None:
        """Return the evaluation of a run's policy; None if it has not finished."""
        return self.evaluations.get((run.name, actions))

    def arms(self) -> list[tuple[str, str]]:
        """Return (arm, regime) of all finished runs, in the order of the plan."""
        there = {(result.run.arm, result.run.regime) for result in self.runs}
        return [(arm, regime) for regime in self.plan.regimes for arm in self.plan.arms if (arm, regime) in there]

    def of_arm(self, arm: str, regime: str) -> list[RunResult]:
        """Return the finished runs of an arm, by seed."""
        return sorted(
            (result for result in self.runs if (result.run.arm, result.run.regime) == (arm, regime)),
            key=lambda result: result.run.seed,
        )

    def gains(self) -> list[Gain]:
        """Compare every evaluated run with the start."""
        return [
            Gain(result.run, actions, compare(after.episodes, before.episodes))
            for actions in ACTIONS
            for arm, regime in self.arms()
            for result in self.of_arm(arm, regime)
            if (after := self.after(result.run, actions)) is not None and (before := self.before(actions)) is not None
        ]

    def pairs(self) -> list[ArmPair]:
        """Compare every two arms of a regime, the first being the earlier in the plan."""
        found = []
        for actions in ACTIONS:
            for regime in self.plan.regimes:
                arms = [arm for arm, of_regime in self.arms() if of_regime == regime]
                for place, first in enumerate(arms):
                    for second in arms[place + 1 :]:
                        found += self._pair(regime, actions, first, second)
        return found

    def _pair(self, regime: str, actions: Actions, first: str, second: str) -> list[ArmPair]:
        ours, theirs = (self._by_seed(arm, regime, actions) for arm in (first, second))
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return []
        comparison = compare(_of_seeds(ours, seeds), _of_seeds(theirs, seeds))
        return [ArmPair(regime, actions, first, second, len(seeds), comparison)]

    def _by_seed(self, arm: str, regime: str, actions: Actions) -> dict[int, Sequence[EpisodeResult]]:
        return {
            result.run.seed: after.episodes
            for result in self.of_arm(arm, regime)
            if (after := self.after(result.run, actions)) is not None
        }


def _of_seeds(episodes: Mapping[int, Sequence[EpisodeResult]], seeds: Iterable[int]) -> list[EpisodeResult]:
    """Return the episodes of several runs, told apart by the seeds of the runs."""
    return [replace(episode, seed=seed) for seed in seeds for episode in episodes[seed]]


def says_something(out: Path) -> bool:
    """Return whether a run or an evaluation has finished, or all candidates are evaluated: then there is a page."""
    plan, _ = read_study(out)
    stages = {read_json_object(path).get("stage") for path in (out / JOBS).glob(f"*/{JOB_FILE}")}
    return bool(stages & {"run", "evaluation"}) or _read_choice(plan, out / JOBS)[1] is not None


def read_results(plan: Plan, out: Path) -> StudyData:
    """Read all finished jobs of a study.

    Raises:
        ValueError: no job has finished that says something about success.
    """
    folder = out / JOBS
    runs: list[RunResult] = []
    evaluations: dict[tuple[str, Actions], Evaluation] = {}
    seconds: dict[str, float] = {}
    videos: dict[str, Sequence[Path]] = {}
    broken: list[str] = []
    for path in sorted(folder.glob(f"*/{JOB_FILE}")):
        job = path.parent
        try:
            record = read_json_object(path)
            seconds[job.name] = float(record["seconds"])
            match record:
                case {"stage": "run"}:
                    runs.append(_read_run(job, record))
                case {"stage": "evaluation"}:
                    evaluation = _read_evaluation(job, record)
                    evaluations[evaluation.subject, evaluation.actions] = evaluation
                case {"stage": "videos", "subject": str(subject)}:
                    videos[subject] = sorted((job / VIDEOS).glob("*.mp4"))
        except (ValueError, KeyError, FileNotFoundError) as error:
            broken.append(f"{job.name}: {error}")
    candidates, start = _read_choice(plan, folder)
    if not evaluations and not runs and not candidates:
        reasons = "; ".join(broken) or "no evaluation and no run has finished yet"
        raise ValueError(f"{out}: {reasons}")
    order = {run.name: place for place, run in enumerate(plan.runs())}
    runs.sort(key=lambda result: order.get(result.run.name, len(order)))
    return StudyData(
        plan=plan,
        candidates=candidates,
        start=start,
        runs=runs,
        evaluations=evaluations,
        seconds=seconds,
        videos=videos,
        broken=broken,
    )


def _read_choice(plan: Plan, folder: Path) -> tuple[Mapping[int, float], int | None]:
    """Return the candidates' success and the chosen one; nothing until all are evaluated, or if the start is given."""
    if plan.start:
        return {}, None
    try:
        return success_of_candidates(plan, folder), chosen_step(plan, folder)
    except (FileNotFoundError, ValueError):
        return {}, None


def _read_run(folder: Path, record: Mapping[str, Any]) -> RunResult:
    """Read a finished run.

    Raises:
        ValueError, KeyError, FileNotFoundError: a file is missing or broken.
    """
    records = read_metrics(folder / METRICS_FILE)
    if not records:
        raise ValueError(f"{folder / METRICS_FILE}: expected log points, found none")
    return RunResult(
        run=StudyRun(record["arm"], record["regime"], record["seed"]),
        records=records,
        seconds=float(record["seconds"]),
        recipe=(folder / RECIPE_FILE).read_text(encoding="utf-8"),
        manifest=read_json_object(folder / MANIFEST_FILE),
    )


def _read_evaluation(folder: Path, record: Mapping[str, Any]) -> Evaluation:
    """Read a finished evaluation.

    Raises:
        ValueError, KeyError, FileNotFoundError: a file is missing or broken.
    """
    if record["actions"] not in ACTIONS:
        raise ValueError(f"{folder / JOB_FILE}: actions are {record['actions']}; expected {' or '.join(ACTIONS)}")
    episodes = read_episodes(folder / EPISODES_FILE)
    if not episodes:
        raise ValueError(f"{folder / EPISODES_FILE}: expected episodes, found none")
    return Evaluation(
        subject=str(record["subject"]),
        actions=record["actions"],
        episodes=episodes,
        controls=stored_controls(folder, episodes)[0],
        deviations=tuple(read_json_object(folder / MANIFEST_FILE).get("deviations", ())),
        trained_there=tuple(_results_of(folder).get("trained_there", ())),
    )


def _results_of(folder: Path) -> Mapping[str, Any]:
    path = folder / RESULTS_FILE
    return read_json_object(path) if path.exists() else {}


def is_unchanged(run: StudyRun) -> bool:
    """Return whether the run's policy never changed."""
    return run.arm == UNCHANGED
