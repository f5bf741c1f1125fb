"""Evaluate a policy: exactly the requested episodes, for any number of workers.

Episodes are assigned one by one from a central queue; a worker that dies costs a retry, not an episode. Every result is
appended at once, so an interrupted evaluation can be continued if its conditions are equal (`conditions.py`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vla_rl.errors import preflight
from vla_rl.evaluation.categories import summarise_categories
from vla_rl.evaluation.conditions import Conditions, evaluation_folder
from vla_rl.evaluation.control import BlankFrames, Control, episodes_file, stored_controls, wrong_instructions
from vla_rl.evaluation.episode_log import EPISODES_FILE, EpisodeKey, EpisodeLog, EpisodeResult
from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.eval_results import EvaluationSummary, write_results
from vla_rl.evaluation.outcome import EvaluationReport
from vla_rl.evaluation.perturbed import (
    PerturbedLogs,
    PerturbedResult,
    PerturbedSuite,
    count_perturbed_videos,
    define,
    perturbed_suite,
    stored_definitions,
    stored_results,
    write_table,
)
from vla_rl.evaluation.play import play, result_keys
from vla_rl.evaluation.policy_source import PolicySource, find_policy
from vla_rl.evaluation.suite_plans import (
    SuitePlan,
    all_deviations,
    folder_name,
    make_conditions,
    make_suite_plans,
)
from vla_rl.evaluation.video import VIDEOS, Keep, check_video, count_videos, recorded_builders
from vla_rl.files import atomic_write_bytes
from vla_rl.learner.checkpoint import held_policy
from vla_rl.reporting.manifest import MANIFEST_FILE, write_manifest
from vla_rl.run.plan import Plan, plan_policy
from vla_rl.workers.episodes import EpisodeJob

USUAL = EvalOptions()
Progress = Callable[[int, int, int], None]
"""(episodes done, episodes in all, successes so far)"""


def evaluate(
    checkpoint: Path | str, options: EvalOptions = USUAL, *, progress: Progress | None = None
) -> EvaluationReport:
    """Evaluate a policy.

    Args:
        checkpoint: see `policy_source.find_policy`.
        options: options that differ from the defaults.
        progress: called once before the first and after every episode.

    Raises:
        UserError: the checkpoint or the options do not fit; nothing was started.
        CellFailureError: a suite failed for good; played episodes are kept.
    """
    with preflight():
        planned = _plan(checkpoint, options)
    claimed = evaluation_folder(planned.conditions, planned.wanted, out=options.out, default=planned.default_folder)
    with claimed as folder:
        return _evaluate(folder, planned, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Evaluation before it plays."""

    source: PolicySource
    options: EvalOptions
    suites: list[SuitePlan]
    perturbed: list[PerturbedSuite]  # one for each suite; none: not asked for
    wanted: frozenset[EpisodeKey]
    conditions: Conditions
    default_folder: Path
    deviations: tuple[str, ...]


def _plan(checkpoint: Path | str, options: EvalOptions) -> Planned:
    source = find_policy(str(checkpoint), profile=options.profile, statistics=options.statistics)
    suites = make_suite_plans(source, options)
    _check_extras(suites, options)
    conditions = make_conditions(source, options, suites)
    return Planned(
        source=source,
        options=options,
        suites=suites,
        perturbed=[] if options.perturb is None else [perturbed_suite(suite, options.perturb) for suite in suites],
        wanted=frozenset().union(*(result_keys(suite.plan, suite.jobs) for suite in suites)),
        conditions=conditions,
        default_folder=source.home / folder_name(source, options, conditions, suites),
        deviations=all_deviations(options, suites),
    )


def _evaluate(folder: Path, planned: Planned, progress: Progress | None) -> EvaluationReport:
    options, suites = planned.options, planned.suites
    total = sum(len(suite.jobs) for suite in suites) * (1 + len(options.controls))
    total += sum(len(suite.jobs) for suite in planned.perturbed)
    with preflight():
        define(folder, planned.perturbed)
        definitions = stored_definitions(folder)
    _write_manifest(folder, planned, definitions)
    with _held(planned.source.checkpoint, folder) as checkpoint:
        passes = Passes(folder, checkpoint, options, Tally(total, progress))
        episodes = passes.play_all([_filmed(suite, folder, options) for suite in suites], EPISODES_FILE)
        for name in options.controls:
            changed = [_blinded(suite) if name == "blind" else _misled(suite, planned) for suite in suites]
            passes.play_all(changed, episodes_file(name))
        passes.play_perturbed(
            planned.perturbed
            if options.video is None
            else [suite.filmed(folder / VIDEOS, keep=options.video, seeds=options.seeds) for suite in planned.perturbed]
        )
    compared, gaps = stored_controls(folder, episodes)
    with preflight():
        perturbed, more_gaps = stored_results(folder, episodes)
    return EvaluationReport(
        checkpoint=planned.source.location,
        folder=folder,
        summary=_write_results(folder, planned, episodes, compared, [*gaps, *more_gaps], perturbed),
        deviations=planned.deviations,
        trained_on=planned.source.trained_on,
        init_states=planned.conditions.init_states,
        controls=compared,
        perturbed=perturbed,
        videos=None if options.video is None else _count_videos(folder, planned, episodes, keep=options.video),
    )


@contextmanager
def _held(checkpoint: Path | None, folder: Path) -> Iterator[Path | None]:
    """Keep a checkpoint, because every pass of every suite reads it anew, and its run may train on."""
    with ExitStack() as stack:
        with preflight():
            held = None if checkpoint is None else stack.enter_context(held_policy(checkpoint, within=folder))
        yield held


def _count_videos(folder: Path, planned: Planned, episodes: Sequence[EpisodeResult], *, keep: Keep) -> tuple[int, int]:
    """Count the episodes that should have a video, perturbed ones too: those that have one, and those without."""
    plain = count_videos(folder / VIDEOS, episodes, keep=keep)
    perturbed = count_perturbed_videos(folder, folder / VIDEOS, planned.perturbed, keep=keep)
    return plain[0] + perturbed[0], plain[1] + perturbed[1]


@dataclass(slots=True)
class Tally:
    """Counter of episodes over all suites and passes, which reports progress."""

    total: int
    progress: Progress | None
    done: int = 0
    successes: int = 0

    def add(self, episodes: Sequence[EpisodeResult]) -> None:
        """Add episodes that were played."""
        self.done += len(episodes)
        self.successes += sum(episode.success for episode in episodes)
        if self.progress is not None:
            self.progress(self.done, self.total, self.successes)


@dataclass(frozen=True, slots=True)
class Passes:
    """Player of all suites, with or without a control."""

    folder: Path
    checkpoint: Path | None
    options: EvalOptions
    tally: Tally

    def play_all(self, suites: Sequence[SuitePlan], file: str) -> list[EpisodeResult]:
        """Play the episodes that a log lacks; return all episodes of the suites from it."""
        with preflight():
            opened = EpisodeLog(self.folder / file)
        with opened as log:
            self.tally.add(log.episodes)
            for suite in suites:
                self._play(suite.plan, suite.jobs, lambda _job: log)
            return list(log.episodes)

    def play_perturbed(self, suites: Sequence[PerturbedSuite]) -> None:
        """Play the perturbed episodes that their logs lack."""
        with preflight():
            opened = PerturbedLogs(self.folder, suites)
        with opened as logs:
            self.tally.add(logs.episodes)
            for suite in suites:
                self._play(suite.plan, suite.jobs, partial(_log_of, suite, logs))

    def _play(self, plan: Plan, jobs: Sequence[EpisodeJob], log_of: Callable[[EpisodeJob], EpisodeLog]) -> None:
        play(
            plan,
            self.checkpoint,
            jobs,
            log_of,
            greedy=self.options.temperature is None,
            log_dir=self.folder / "logs",
            on_episode=lambda episode: self.tally.add([episode]),
        )


def _log_of(suite: PerturbedSuite, logs: PerturbedLogs, job: EpisodeJob) -> EpisodeLog:
    return logs.of(suite.of(job))


def _check_extras(suites: Sequence[SuitePlan], options: EvalOptions) -> None:
    """Refuse a control or videos if there are no images or no encoder.

    Raises:
        ValueError: naming the option.
    """
    for suite in suites:
        if options.controls and suite.plan.transform is None:
            missing = "sees no frames" if "blind" in options.controls else "reads no instruction"
            raise ValueError(
                f"--control {','.join(options.controls)}: the policy {missing}, only the state; leave the option out"
            )
    if options.video is not None:
        check_video()
        for suite in suites:
            recorded_builders(suite.plan, [Path()] * len(suite.plan.env.tasks), keep=options.video, seeds=())


def _filmed(suite: SuitePlan, folder: Path, options: EvalOptions) -> SuitePlan:
    if options.video is None:
        return suite
    folders = [folder / VIDEOS] * len(suite.plan.env.tasks)
    builders = recorded_builders(suite.plan, folders, keep=options.video, seeds=options.seeds)
    return replace(suite, plan=replace(suite.plan, env=replace(suite.plan.env, builders=builders)))


def _blinded(suite: SuitePlan) -> SuitePlan:
    policy = suite.plan.policy
    assert policy.transform is not None
    blind = replace(policy, transform=BlankFrames(policy.transform))
    return replace(suite, plan=replace(suite.plan, policy=blind))


def _misled(suite: SuitePlan, planned: Planned) -> SuitePlan:
    """Return the suite with a policy that reads the instruction of another task."""
    wrong = _wrong_instructions(suite, planned.source)
    tasks = [replace(task, language=wrong[task.task_id]) for task in suite.plan.env.tasks]
    policy = plan_policy(suite.plan.setup, only_acts=True, tasks=tasks)
    return replace(suite, plan=replace(suite.plan, policy=policy))


def _wrong_instructions(suite: SuitePlan, source: PolicySource) -> dict[int, str]:
    """Return the instruction of another task for every task of a suite; see `wrong_instructions`."""
    env, training = suite.plan.setup.env, source.training
    known = training.tasks if training is not None and training.suite == env.suite_name else ()
    right = env.instructions()
    if suite.plan.env.folder is None:
        return wrong_instructions(right, among=known)
    # Variants of one task may differ in their words alone, so a wrong text comes from another task of the benchmark.
    bases, tasks = suite.plan.env.folder.bases, suite.plan.env.tasks
    return {
        task.task_id: wrong_instructions({**right, bases.get(task.task_id, -1): task.language}, among=known)[
            bases.get(task.task_id, -1)
        ]
        for task in tasks
    }


def _recorded_instructions(folder: Path, planned: Planned) -> dict[str, dict[int, str]] | None:
    """Return the wrong instructions by suite and task id, if their control is or was played in this folder."""
    if "instruction" not in planned.options.controls and not (folder / episodes_file("instruction")).exists():
        return None
    return {
        suite.plan.env.tasks[0].suite: {
            task_id: text
            for task_id, text in _wrong_instructions(suite, planned.source).items()
            if task_id in {task.task_id for task in suite.plan.env.tasks}
        }
        for suite in planned.suites
    }


def _write_manifest(folder: Path, planned: Planned, perturbations: Sequence[Mapping[str, Any]]) -> None:
    source, options = planned.source, planned.options
    plans = [suite.plan for suite in planned.suites]
    simulator = plans[0].env.simulator
    write_manifest(
        folder / MANIFEST_FILE,
        recipe=plans[0].setup.model_dump(mode="json", by_alias=True),
        seeds={f"environments {number}": seed for number, seed in enumerate(options.seeds)},
        assets={
            "checkpoint": source.location,
            "fingerprint": source.fingerprint,
            "trained_on": source.trained_on,
            "simulator_assets": None if simulator is None else f"{simulator.assets.kind}: {simulator.assets.folder}",
            "renderer": None if simulator is None else f"{simulator.gl}: {simulator.renderer}",
        },
        deviations=planned.deviations,
        extra={
            "protocol": None if simulator is None else options.protocol.describe(),
            "horizons": {plan.env.tasks[0].suite: plan.env.horizon for plan in plans},
            "tasks": {plan.env.tasks[0].suite: [task.task_id for task in plan.env.tasks] for plan in plans},
            "statistics": {plan.env.tasks[0].suite: plan.policy.statistics for plan in plans},
            "episodes_per_task": options.episodes_per_task,
            "policies": {plan.env.tasks[0].suite: plan.policy.text for plan in plans},
            "workers": plans[0].setup.rollout.num_workers,
            "temperature": options.temperature,
            "perturbations": list(perturbations),
            **({"folders": folders} if (folders := _folders(plans)) else {}),
            "wrong_instructions": _recorded_instructions(folder, planned),
        },
    )


def _folders(plans: Sequence[Plan]) -> dict[str, dict[str, Any]]:
    """Describe the user's folders by the names of their suites."""
    return {
        plan.env.tasks[0].suite: {
            "path": plan.env.folder.path,
            "base": plan.env.folder.base,
            "num_tasks": plan.env.folder.num_tasks,
            "names": {task.task_id: task.name for task in plan.env.tasks},
        }
        for plan in plans
        if plan.env.folder is not None
    }


def _write_results(
    folder: Path,
    planned: Planned,
    episodes: Sequence[EpisodeResult],
    controls: Sequence[Control],
    gaps: Sequence[str],
    perturbed: Sequence[PerturbedResult],
) -> EvaluationSummary:
    source, states = planned.source, planned.conditions.init_states
    tasks = [task for suite in planned.suites for task in suite.plan.env.tasks]
    stored = [task for suite in planned.suites for task in suite.plan.env.tasks_with_stored_states]
    categories = summarise_categories(episodes, [suite.plan.env for suite in planned.suites])
    trained_there = source.training.notes(init_states=states, tasks=stored) if source.training is not None else []
    summary = write_results(
        folder,
        episodes,
        languages={(task.suite, task.task_id): task.language for task in tasks},
        stored=frozenset(suite for suite, _ in stored),
        notes=[*map(str, categories), *trained_there, *gaps],
        columns={"init_states": states, "trained_on": source.trained_on},
        details={
            "evaluation": asdict(planned.conditions),
            "deviations": list(planned.deviations),
            "trained_there": trained_there,
            "controls": [asdict(control) for control in controls],
            **({"categories": [asdict(one) for one in categories]} if categories else {}),
            **({"perturbations": [asdict(one) for one in perturbed]} if perturbed else {}),
        },
    )
    if perturbed:
        write_table(folder, perturbed)
    if planned.options.pictures:
        _write_pictures(folder, summary, perturbed)
    return summary


def _write_pictures(folder: Path, summary: EvaluationSummary, perturbed: Sequence[PerturbedResult]) -> None:
    """Write `success_<suite>.png` and `perturbations_<suite>.png` if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from vla_rl.reporting.perturbation_plot import draw_perturbations
    from vla_rl.reporting.run_plots import draw_success_per_task, png

    for suite in summary.suites:
        tasks = [asdict(task) for task in summary.tasks if task.suite == suite.suite]
        picture = png(draw_success_per_task(tasks, confidence=summary.confidence))
        atomic_write_bytes(folder / f"success_{suite.suite}.png", picture)
        of_suite = [asdict(one) for one in perturbed if one.suite == suite.suite]
        if of_suite:
            atomic_write_bytes(folder / f"perturbations_{suite.suite}.png", png(draw_perturbations(of_suite)))
