"""Evaluations of a training run: when they are due, who plays them, what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vla_rl.evaluation.outcome import EvaluationReport
from vla_rl.evaluation.while_training import (
    EvaluationStoppedError,
    History,
    in_words,
    options_of,
    play_or_warn,
    play_while_training,
)
from vla_rl.learner.checkpoint import CheckpointInfo, set_best
from vla_rl.reporting.evaluated_points import evaluated_points
from vla_rl.reporting.metrics_file import METRICS_FILE, Clocks, read_metrics
from vla_rl.run.log import RunLog
from vla_rl.run.training import TrainingRun


class Evaluations:
    """Evaluations of one run. Rank 0 plays while the others wait; all ranks call the same methods together."""

    def __init__(self, run: TrainingRun, run_log: RunLog, stop: Callable[[], bool]) -> None:
        """Read what the run has already evaluated.

        Args:
            run: this rank's run.
            run_log: its log.
            stop: whether this process was asked to stop.
        """
        self._run, self._run_log, self._stop = run, run_log, stop
        self._recipe = run.plan.recipe
        self._every = self._recipe.evaluation.every_optimizer_steps
        self._is_main = run.engine.collectives.is_main
        self.verdict = ""  # why the run is finished, on rank 0; empty if it is not
        self.is_over = False  # the same, on every rank
        self._newest: tuple[int, EvaluationReport] | None = None  # since the start, with its optimizer step
        self._tried: int | None = None  # optimizer step that was evaluated last, perhaps in vain
        self._history = History(run.run_dir)
        if self._is_main:
            self._recall()
        if self._every is not None:
            self.is_over = run.engine.collectives.any_over_ranks(bool(self.verdict))

    def report_of(self, optimizer_steps: int) -> EvaluationReport | None:
        """Return the evaluation of an optimizer step if it is the newest since the start; None if it is not."""
        return self._newest[1] if self._newest is not None and self._newest[0] == optimizer_steps else None

    def are_due(self, optimizer_steps: int) -> bool:
        """Return whether an evaluation follows this optimizer step."""
        if self._every is None:
            return False
        return optimizer_steps % self._every == 0 or optimizer_steps >= self._recipe.budget.optimizer_steps

    def catch_up(self, checkpoint: CheckpointInfo, *, is_last: bool = False) -> None:
        """Evaluate a checkpoint that should have been evaluated and was not.

        Args:
            checkpoint: that the run resumes from, or that it ends with.
            is_last: the run ends with it, so that it is due.
        """
        if self._every is None or not (is_last or self.are_due(checkpoint.optimizer_steps)):
            return
        step = checkpoint.optimizer_steps
        is_missing = self._is_main and not self._history.has(step) and step != self._tried
        if self._run.engine.collectives.any_over_ranks(is_missing):
            self.make(checkpoint)

    def make(self, checkpoint: CheckpointInfo) -> None:
        """Evaluate a checkpoint; afterwards `is_over` tells whether the run is finished.

        An evaluation that fails is reported and left out, because it must not cost the training.
        """
        clocks, self._tried = self._run_log.global_clocks(), checkpoint.optimizer_steps
        if self._is_main:
            try:
                play_or_warn(partial(self._play, checkpoint, clocks), partial(self._warn, checkpoint))
            except EvaluationStoppedError:
                self._run_log.note(f"the evaluation of optimizer step {checkpoint.optimizer_steps} was interrupted")
        self.is_over = self._run.engine.collectives.any_over_ranks(bool(self.verdict))
        self._run_log.pass_over()

    def _warn(self, checkpoint: CheckpointInfo, reason: str) -> None:
        step = checkpoint.optimizer_steps
        self._run_log.note(f"warning: no evaluation of optimizer step {step}, the training goes on: {reason}")

    def _play(self, checkpoint: CheckpointInfo, clocks: Clocks) -> None:
        self._run_log.note(f"evaluating optimizer step {checkpoint.optimizer_steps}")
        point, report = play_while_training(
            checkpoint.path,
            options_of(self._recipe),
            run_dir=self._run.run_dir,
            optimizer_steps=checkpoint.optimizer_steps,
            stop=self._stop,
        )
        is_best = self._history.add(point)
        self._show()
        self._run_log.evaluation_point(clocks)
        self._newest = (checkpoint.optimizer_steps, report)
        kept = self._keep_best()
        best = "the best so far" if is_best else "not distinguishably better than the best"
        self._run_log.note(
            f"evaluation at optimizer step {point.optimizer_steps}: {in_words(point)} succeeded, {best}"
            + (" (checkpoints/best)" if is_best and kept else "")
        )
        self._judge()

    def _recall(self) -> None:
        """Go on with the evaluations in the run's log points."""
        metrics = self._run.run_dir / METRICS_FILE
        points = evaluated_points(read_metrics(metrics)) if metrics.is_file() else []
        self._history = History.read(self._run.run_dir, points)
        self._keep_best()
        if points and self._every is not None:
            self._show()
            self._judge()

    def _judge(self) -> None:
        budget = self._recipe.budget
        self.verdict = self._history.verdict(
            target=budget.stop_at_success, patience=budget.stop_after_evaluations_without_gain
        )
        if self.verdict:
            self._run_log.note(f"finished: {self.verdict}")

    def _keep_best(self) -> bool:
        keeps = self._recipe.checkpoint.keep_best
        set_best(self._run.run_dir, self._history.kept_best() if keeps else None)
        return keeps

    def _show(self) -> None:
        history = self._history
        assert history.best is not None, "it holds a point"
        self._run_log.evaluated(
            history.points[-1], history.best, without_gain=history.without_gain, seconds=history.seconds
        )
