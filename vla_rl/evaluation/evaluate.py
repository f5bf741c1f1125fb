"""Evaluate a policy: exactly the asked episodes, whatever the number of workers.

Episodes are handed out one by one from a central queue; a worker that dies costs a retry, not an episode. Results are
appended as they come, so an interrupted evaluation goes on where it was, if it is the same one: `conditions.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vla_rl.errors import preflight
from vla_rl.evaluation.choices import Choices
from vla_rl.evaluation.conditions import Conditions, evaluation_folder
from vla_rl.evaluation.control import BLIND_EPISODES_FILE, BlankFrames, Control, stored_control
from vla_rl.evaluation.episodes import EPISODES_FILE, EpisodeKey, EpisodeLog, EpisodeResult
from vla_rl.evaluation.outcome import EvaluationReport
from vla_rl.evaluation.parts import Part, all_deviations, folder_name, make_conditions, make_parts
from vla_rl.evaluation.play import play, result_keys
from vla_rl.evaluation.results import EvaluationSummary, write_results
from vla_rl.evaluation.subject import Subject, find_subject
from vla_rl.evaluation.video import VIDEOS, check_video, count_videos, recorded_builders
from vla_rl.reporting.files import atomic_write_bytes
from vla_rl.reporting.manifest import MANIFEST_FILE, write_manifest

USUAL = Choices()
Progress = Callable[[int, int, int], None]
"""(episodes done, episodes in all, successes so far)"""


def evaluate(checkpoint: Path | str, choices: Choices = USUAL, *, progress: Progress | None = None) -> EvaluationReport:
    """Evaluate a policy.

    Args:
        checkpoint: see `subject.find_subject`.
        choices: what departs from the usual.
        progress: told once before the first and after every episode.

    Raises:
        UserError: the checkpoint or the choices do not fit; nothing was started.
        CellFailureError: a part failed for good; what was played is kept.
    """
    with preflight():
        planned = _plan(checkpoint, choices)
    claimed = evaluation_folder(planned.conditions, planned.wanted, out=choices.out, default=planned.default_folder)
    with claimed as folder:
        return _evaluate(folder, planned, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """An evaluation before it plays."""

    subject: Subject
    choices: Choices
    parts: list[Part]
    wanted: frozenset[EpisodeKey]
    conditions: Conditions
    default_folder: Path
    deviations: tuple[str, ...]


def _plan(checkpoint: Path | str, choices: Choices) -> Planned:
    subject = find_subject(str(checkpoint), profile=choices.profile, statistics=choices.statistics)
    parts = make_parts(subject, choices)
    _check_extras(parts, choices)
    conditions = make_conditions(subject, choices, parts)
    return Planned(
        subject=subject,
        choices=choices,
        parts=parts,
        wanted=frozenset().union(*(result_keys(part.plan, part.jobs) for part in parts)),
        conditions=conditions,
        default_folder=subject.home / folder_name(subject, choices, conditions, parts),
        deviations=all_deviations(choices, parts),
    )


def _evaluate(folder: Path, planned: Planned, progress: Progress | None) -> EvaluationReport:
    choices, parts = planned.choices, planned.parts
    _write_manifest(folder, planned)
    total = sum(len(part.jobs) for part in parts) * (1 if choices.control is None else 2)
    passes = Passes(folder, planned.subject.checkpoint, choices, Tally(total, progress))
    episodes = passes.play_all([_filmed(part, folder, choices) for part in parts], EPISODES_FILE)
    if choices.control is not None:
        passes.play_all([_blinded(part) for part in parts], BLIND_EPISODES_FILE)
    compared, gaps = stored_control(folder, episodes)
    return EvaluationReport(
        checkpoint=planned.subject.location,
        folder=folder,
        summary=_write_results(folder, planned, episodes, compared, gaps),
        deviations=planned.deviations,
        trained_on=planned.subject.trained_on,
        init_states=planned.conditions.init_states,
        control=compared,
        videos=None if choices.video is None else count_videos(folder / VIDEOS, episodes, keep=choices.video),
    )


@dataclass(slots=True)
class Tally:
    """Counts episodes over all suites and passes, and tells."""

    total: int
    progress: Progress | None
    done: int = 0
    successes: int = 0

    def add(self, episodes: Sequence[EpisodeResult]) -> None:
        """These were played."""
        self.done += len(episodes)
        self.successes += sum(episode.success for episode in episodes)
        if self.progress is not None:
            self.progress(self.done, self.total, self.successes)


@dataclass(frozen=True, slots=True)
class Passes:
    """Plays all parts once, seeing or blind."""

    folder: Path
    checkpoint: Path | None
    choices: Choices
    tally: Tally

    def play_all(self, parts: Sequence[Part], file: str) -> list[EpisodeResult]:
        """Play what is missing in a log; returns the episodes that stand in it then: those of the parts."""
        with preflight():
            opened = EpisodeLog(self.folder / file)
        with opened as log:
            self.tally.add(log.episodes)
            for part in parts:
                play(
                    part.plan,
                    self.checkpoint,
                    part.jobs,
                    log,
                    greedy=self.choices.temperature is None,
                    seed=self.choices.seeds[0],
                    log_dir=self.folder / "logs",
                    on_episode=lambda episode: self.tally.add([episode]),
                )
            return list(log.episodes)


def _check_extras(parts: Sequence[Part], choices: Choices) -> None:
    """Refuse a control or videos where there is nothing to see, or no encoder.

    Raises:
        ValueError: naming the option.
    """
    for part in parts:
        if choices.control is not None and part.plan.transform is None:
            raise ValueError("--control blind: the policy sees no frames, only the state; leave the option out")
    if choices.video is not None:
        check_video()
        for part in parts:
            recorded_builders(part.plan, Path(), keep=choices.video, seeds=())


def _filmed(part: Part, folder: Path, choices: Choices) -> Part:
    if choices.video is None:
        return part
    builders = recorded_builders(part.plan, folder / VIDEOS, keep=choices.video, seeds=choices.seeds)
    return replace(part, plan=replace(part.plan, env=replace(part.plan.env, builders=builders)))


def _blinded(part: Part) -> Part:
    assert part.plan.transform is not None
    return replace(part, plan=replace(part.plan, transform=BlankFrames(part.plan.transform)))


def _write_manifest(folder: Path, planned: Planned) -> None:
    subject, choices = planned.subject, planned.choices
    plans = [part.plan for part in planned.parts]
    simulator = plans[0].env.simulator
    write_manifest(
        folder / MANIFEST_FILE,
        recipe=plans[0].recipe.model_dump(mode="json", by_alias=True),
        seeds={f"environments {number}": seed for number, seed in enumerate(choices.seeds)},
        assets={
            "checkpoint": subject.location,
            "fingerprint": subject.fingerprint,
            "trained_on": subject.trained_on,
            "simulator_assets": None if simulator is None else f"{simulator.assets.kind}: {simulator.assets.folder}",
            "renderer": None if simulator is None else f"{simulator.gl}: {simulator.renderer}",
        },
        deviations=planned.deviations,
        extra={
            "protocol": None if simulator is None else choices.protocol.describe(),
            "horizons": {plan.env.tasks[0].suite: plan.env.horizon for plan in plans},
            "tasks": {plan.env.tasks[0].suite: [task.task_id for task in plan.env.tasks] for plan in plans},
            "statistics": {plan.env.tasks[0].suite: plan.policy.statistics for plan in plans},
            "episodes_per_task": choices.episodes_per_task,
            "policies": {plan.env.tasks[0].suite: plan.policy.text for plan in plans},
            "workers": plans[0].recipe.rollout.num_workers,
            "temperature": choices.temperature,
        },
    )


def _write_results(
    folder: Path,
    planned: Planned,
    episodes: Sequence[EpisodeResult],
    control: Control | None,
    gaps: Sequence[str],
) -> EvaluationSummary:
    subject, states = planned.subject, planned.conditions.init_states
    tasks = [task for part in planned.parts for task in part.plan.env.tasks]
    played = [(task.suite, task.task_id) for task in tasks]
    trained_here = subject.training.notes(init_states=states, tasks=played) if subject.training is not None else []
    summary = write_results(
        folder,
        episodes,
        languages={(task.suite, task.task_id): task.language for task in tasks},
        notes=[*trained_here, *gaps],
        columns={"init_states": states, "trained_on": subject.trained_on},
        details={
            "evaluation": asdict(planned.conditions),
            "deviations": list(planned.deviations),
            "control": None if control is None else asdict(control),
        },
    )
    _write_pictures(folder, summary)
    return summary


def _write_pictures(folder: Path, summary: EvaluationSummary) -> None:
    """`success_<suite>.png`, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from vla_rl.reporting.plots import draw_success_per_task, png

    for suite in summary.suites:
        tasks = [asdict(task) for task in summary.tasks if task.suite == suite.suite]
        picture = png(draw_success_per_task(tasks, confidence=summary.confidence))
        atomic_write_bytes(folder / f"success_{suite.suite}.png", picture)
