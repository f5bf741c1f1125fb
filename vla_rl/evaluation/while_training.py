"""Evaluations that a run makes while it trains: played, recorded and compared.

The record of an evaluation is its log point, which is written whole or not at all: an evaluation that was interrupted
has none, and is played again from its first episode when the run is resumed. Its episodes, results and videos are in
`eval/while_training/optimizer_step_<n>/`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vla_rl.errors import RunFailureError, UserError, preflight
from vla_rl.evaluation.episode_log import EPISODES_FILE, EpisodeResult, read_episodes
from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.evaluate import evaluate
from vla_rl.evaluation.outcome import EvaluationReport
from vla_rl.evaluation.pairs import compare
from vla_rl.evaluation.policy_source import PolicySource
from vla_rl.evaluation.provenance import training_in
from vla_rl.evaluation.suite_plans import make_suite_plans
from vla_rl.learner.checkpoint import FOLDER
from vla_rl.learner.rng import capture_rng, restore_rng
from vla_rl.policies.devices import free_device_memory, is_out_of_memory
from vla_rl.recipe import Recipe
from vla_rl.reporting.evaluated_points import EvaluatedPoint
from vla_rl.reporting.run_layout import EVALUATIONS, WHILE_TRAINING
from vla_rl.reporting.text import percent

_FIELDS = {  # words of messages to a run, by those to `vla-rl eval`: the recipe's fields in place of options
    "--episodes-per-task": "evaluation.episodes_per_task",
    "--init-states": "evaluation.init_states",
    "--horizon": "evaluation.horizon",
    "--tasks": "evaluation.tasks",
    "give --allow-unpinned": "evaluate the run afterwards with `vla-rl eval --allow-unpinned`",
}


class EvaluationStoppedError(Exception):
    """The run was asked to stop while it evaluated."""


def options_of(recipe: Recipe) -> EvalOptions:
    """Return the options of the evaluations that a recipe asks for."""
    section = recipe.evaluation
    return EvalOptions(
        tasks=None if section.tasks == "all" else tuple(section.tasks),
        episodes_per_task=section.episodes_per_task,
        workers=recipe.rollout.num_workers,
        seeds=(recipe.seed,),
        init_states=section.init_states,
        horizon=section.horizon,
        video=section.video,
    )


def check_evaluation(recipe: Recipe) -> None:
    """Plan the evaluations of a recipe, so that what cannot be evaluated is told before the training.

    Raises:
        ValueError: an evaluation would be refused; the message names the field.
    """
    if not recipe.evaluation.episodes_per_task:
        return
    setup = recipe.setup
    source = PolicySource(
        location=recipe.name,
        name="",
        home=Path(),
        policy=setup.policy,
        checkpoint=None,
        fingerprint="",
        training=training_in(setup.env),
        run=setup,
    )
    check_options(source, options_of(recipe), workers="rollout.num_workers")


def check_options(source: PolicySource, options: EvalOptions, *, workers: str) -> None:
    """Plan the evaluations that a run will make.

    Args:
        source: the policy, or another one for the same suites and cameras.
        options: of the evaluations.
        workers: the recipe's field for the number of simulator processes.

    Raises:
        ValueError: an evaluation would be refused; the message names the field.
    """
    try:
        make_suite_plans(source, options)
    except ValueError as error:
        message = str(error)
        for option, path in (_FIELDS | {"--workers": workers}).items():
            message = message.replace(option, path)
        raise ValueError(f"the run's evaluations: {message}; evaluation.episodes_per_task 0 makes none") from error


def folder_of(run_dir: Path, optimizer_steps: int) -> Path:
    """Return the folder of an evaluation while training."""
    return run_dir / EVALUATIONS / WHILE_TRAINING / f"optimizer_step_{optimizer_steps}"


def play_while_training(
    policy: Path, options: EvalOptions, *, run_dir: Path, optimizer_steps: int, stop: Callable[[], bool]
) -> tuple[EvaluatedPoint, EvaluationReport]:
    """Play an evaluation that leaves no trace in the training: random number generators go on where they were.

    Episodes of an earlier attempt, which an interruption or another course of the training left, are removed first.

    Args:
        policy: checkpoint, or policy in the public layout.
        options: without a folder.
        run_dir: the run's folder.
        optimizer_steps: of the policy.
        stop: whether the run was asked to stop; looked at after every episode.

    Raises:
        EvaluationStoppedError: it was.
        UserError: the evaluation was refused.
        CellFailureError: a part failed for good.
    """

    def heed(_done: int, _total: int, _successes: int) -> None:
        if stop():
            raise EvaluationStoppedError

    began, generators = time.monotonic(), capture_rng()
    folder = folder_of(run_dir, optimizer_steps)
    with preflight():
        shutil.rmtree(folder, ignore_errors=True)
    try:
        report = evaluate(policy, replace(options, out=folder, pictures=False), progress=heed)
    finally:
        restore_rng(generators)
    suite = report.summary.suites[0]
    point = EvaluatedPoint(
        optimizer_steps,
        success_rate=suite.success_rate,
        low=suite.wilson.low,
        high=suite.wilson.high,
        episodes=suite.episodes,
        seconds=time.monotonic() - began,
    )
    return point, report


def play_or_warn(play: Callable[[], None], warn: Callable[[str], None]) -> None:
    """Play an evaluation while training; one that fails is reported, because it must not cost the training.

    Args:
        play: plays it, and keeps what came of it.
        warn: called with the reason of a failure.

    Raises:
        EvaluationStoppedError: the run was asked to stop.
        RuntimeError: a fault of the program, not a lack of device memory.
    """
    try:
        play()
    except (RunFailureError, UserError, OSError) as error:
        warn(str(error))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        warn(
            f"{error}. The evaluation has a policy of its own beside the learner's: lower learner.micro_batch and "
            "raise learner.accumulation by the same factor, or leave the evaluation to the end with "
            "evaluation.every_optimizer_steps=null"
        )
    finally:
        free_device_memory()  # here an error is gone, and with it what it held


def in_words(point: EvaluatedPoint) -> str:
    """Return the result of an evaluation in words."""
    return (
        f"{percent(point.success_rate)} of {point.episodes} episodes (95 % interval {percent(point.low)} to "
        f"{percent(point.high)})"
    )


@dataclass(slots=True)
class History:
    """Evaluations of a run so far, and the best of them.

    A point replaces the best one if it is distinguishably better: on the episodes that both played (same task, initial
    state and seed) McNemar's mid-p is below 5 %, see `pairs.Comparison`. Where no episode is shared, because the recipe
    changed or a folder was removed, its whole interval must lie above the best one's.
    """

    run_dir: Path
    points: list[EvaluatedPoint] = field(default_factory=list)
    best: EvaluatedPoint | None = None
    without_gain: int = 0  # evaluations since the best one
    seconds: float = 0.0  # of all evaluations

    @classmethod
    def read(cls, run_dir: Path, points: Sequence[EvaluatedPoint]) -> History:
        """Return the history that a run's log points tell."""
        history = cls(run_dir)
        for point in points:
            history.add(point)
        return history

    def add(self, point: EvaluatedPoint) -> bool:
        """Add the newest evaluation; return whether it is the best one now."""
        self.points.append(point)
        self.seconds += point.seconds
        is_best = self.best is None or self._is_better(point, self.best)
        self.best, self.without_gain = (point, 0) if is_best else (self.best, self.without_gain + 1)
        return is_best

    def has(self, optimizer_steps: int) -> bool:
        """Return whether an optimizer step was evaluated."""
        return any(point.optimizer_steps == optimizer_steps for point in self.points)

    def kept_best(self) -> int | None:
        """Return the optimizer step of the best point whose checkpoint exists; None if there is none.

        It differs from `best` where a damaged checkpoint made the run go on from an earlier one, or where the best one
        was not kept before.
        """
        best = self.best
        if best is not None and not self._is_kept(best):
            best = History.read(self.run_dir, [point for point in self.points if self._is_kept(point)]).best
        return None if best is None else best.optimizer_steps

    def _is_kept(self, point: EvaluatedPoint) -> bool:
        return (self.run_dir / FOLDER / f"optimizer_step_{point.optimizer_steps}").is_dir()

    def verdict(self, *, target: float | None, patience: int | None) -> str:
        """Return why the run is finished; empty if it is not.

        Args:
            target: success rate, `budget.stop_at_success`.
            patience: evaluations, `budget.stop_after_evaluations_without_gain`.
        """
        newest = self.points[-1] if self.points else None
        if newest is None:
            return ""
        if target is not None and newest.success_rate >= target:
            return (
                f"the target is reached (budget.stop_at_success {target:g}): {in_words(newest)} succeeded at optimizer "
                f"step {newest.optimizer_steps}"
            )
        if patience is not None and self.without_gain >= patience:
            assert self.best is not None
            return (
                f"no gain (budget.stop_after_evaluations_without_gain {patience}): since optimizer step "
                f"{self.best.optimizer_steps}, with {in_words(self.best)}, no evaluation was distinguishably better"
            )
        return ""

    def _is_better(self, point: EvaluatedPoint, best: EvaluatedPoint) -> bool:
        ours, theirs = (_episodes(self.run_dir, each) for each in (point, best))
        try:
            result = compare(ours, theirs)
        except ValueError:  # no episode in common
            return point.low > best.high
        return result.distinguishable and result.difference > 0


def _episodes(run_dir: Path, point: EvaluatedPoint) -> list[EpisodeResult]:
    log = folder_of(run_dir, point.optimizer_steps) / EPISODES_FILE
    if not log.is_file():
        return []
    try:
        return read_episodes(log)
    except (ValueError, UserError):  # damaged: as good as removed
        return []
