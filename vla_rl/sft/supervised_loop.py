"""Loop of a supervised run."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from vla_rl.errors import RunFailureError
from vla_rl.evaluation.while_training import EvaluationStoppedError, in_words, play_or_warn, play_while_training
from vla_rl.learner.checkpoint import CheckpointInfo
from vla_rl.learner.engine import NonFiniteUpdateError, UpdateResult
from vla_rl.reporting.evaluated_points import EvaluatedPoint, evaluated_points
from vla_rl.reporting.metrics_file import METRICS_FILE, MetricsWriter, read_metrics
from vla_rl.reporting.run_folder import as_argument
from vla_rl.reporting.text import duration
from vla_rl.run.signals import StopRequest
from vla_rl.sft.supervised_evaluations import options_of_supervised
from vla_rl.sft.supervised_run import VERB, Say, SupervisedRun
from vla_rl.sft.written_policy import write_policy

SHOW_EVERY_S = 5.0


class SupervisedLoop:
    """The loop: update, measure, log, evaluate, checkpoint."""

    def __init__(self, run: SupervisedRun, say: Say, writer: MetricsWriter | None, stop: StopRequest) -> None:
        self._run, self._say, self._writer, self._stop = run, say, writer, stop
        self.latest: dict[str, float] = {}
        self._shown_at = -SHOW_EVERY_S
        self._evaluation_seconds = sum(point.seconds for point in _evaluated(run.run_dir)) if run.rank == 0 else 0.0
        self._rate_from = (time.monotonic(), run.batches)

    def train(self) -> CheckpointInfo:
        """Train until the budget is spent or a stop was requested; return the last checkpoint. All ranks together.

        Raises:
            RunFailureError: too many updates were skipped, or the last checkpoint could not be written.
        """
        run, recipe = self._run, self._run.plan.recipe
        total = recipe.budget.optimizer_steps
        saved = run.resumed_from if run.resumed_from is not None and run.resumed_from.is_in_place else None
        if saved is not None and self._is_evaluated(saved.optimizer_steps):
            self._evaluate(saved)  # the run may have ended before or in the middle of it
        unmeasured: UpdateResult | None = None  # the newest update, if nothing held out was measured after it
        is_told = False  # whether a log point has the newest update
        while run.optimizer_steps < total:
            if run.engine.collectives.any_over_ranks(self._stop.requested or run.is_spent()):
                break
            done = run.optimizer_steps
            result = self._update()
            if run.optimizer_steps == done:
                continue
            saved, unmeasured = None, result
            step = run.optimizer_steps
            found: dict[str, float] = {}
            if step % recipe.logging.held_out_every_optimizer_steps == 0 or step == total:
                found |= run.measure_held_out()
                unmeasured = None
            is_told = step % recipe.logging.every_optimizer_steps == 0 or step == total or bool(found)
            if is_told:
                self._point(result, found)  # before the checkpoint: a run that goes on from there has it
            if step % recipe.checkpoint.every_optimizer_steps == 0 or self._is_evaluated(step):
                saved = self._save_or_warn()
            if saved is not None and self._is_evaluated(step):
                self._evaluate(saved)
        if unmeasured is not None and not run.engine.collectives.any_over_ranks(self._stop.requested):
            self._point_at_the_end(unmeasured, is_told=is_told)
        return saved or self._save_last()

    def _update(self) -> UpdateResult:
        try:
            return self._run.update()
        except NonFiniteUpdateError as error:
            raise RunFailureError(str(error)) from error

    def _is_evaluated(self, step: int) -> bool:
        """Return whether an evaluation follows this step; the one at the end is made after the training."""
        recipe = self._run.plan.recipe
        every = recipe.evaluation.every_optimizer_steps
        wanted = recipe.evaluation.episodes_per_task > 0 and every is not None and step % every == 0
        return wanted and step < recipe.budget.optimizer_steps

    def _evaluate(self, checkpoint: CheckpointInfo) -> None:
        """Evaluate a checkpoint on rank 0, unless a log point holds its evaluation; the others wait."""
        run = self._run
        step = checkpoint.optimizer_steps
        if run.rank == 0 and step not in _evaluated_steps(run.run_dir):
            try:
                play_or_warn(partial(self._play, checkpoint), partial(self._warn, step))
            except EvaluationStoppedError:
                self._say(f"the evaluation of optimizer step {step} was interrupted; a resumed run makes it")
        run.engine.collectives.barrier()
        self._rate_from = (time.monotonic(), run.batches)

    def _warn(self, step: int, reason: str) -> None:
        self._say(f"warning: no evaluation of optimizer step {step}, the training goes on: {reason}")

    def _play(self, checkpoint: CheckpointInfo) -> None:
        """Play an evaluation and write its log point."""
        run, step = self._run, checkpoint.optimizer_steps
        policy = write_policy(run.plan, checkpoint, run.run_dir)
        self._say(f"evaluating {policy} of optimizer step {step}")
        point, _ = play_while_training(
            policy,
            options_of_supervised(run.plan),
            run_dir=run.run_dir,
            optimizer_steps=step,
            stop=lambda: self._stop.requested,
        )
        self._say(f"success at optimizer step {step}: {in_words(point)}")
        self._evaluation_seconds += point.seconds
        share = min(1.0, self._evaluation_seconds / max(run.clocks.seconds, 1e-9))
        self._write(
            point.metrics() | {"supervised/success_rate": point.success_rate, "perf/evaluation_fraction": share}
        )

    def _point(self, result: UpdateResult, found: dict[str, float]) -> None:
        """Write one log point. All ranks call it together."""
        run = self._run
        metrics = run.metrics(result) | found | self._rates()
        self._write(metrics)
        if self._writer is None:
            return
        if time.monotonic() - self._shown_at >= SHOW_EVERY_S or found:
            self._shown_at = time.monotonic()
            self._say(self._line())

    def _point_at_the_end(self, result: UpdateResult, *, is_told: bool) -> None:
        """Write a log point of a run whose time is over, if something is held out or its newest update has none."""
        found = self._run.measure_held_out()
        if found or not is_told:
            self._point(result, found)

    def _write(self, metrics: dict[str, float]) -> None:
        self.latest |= metrics
        if self._writer is None:
            return
        try:
            self._writer.write(self._run.clocks, metrics)
        except OSError as error:
            self._say(f"warning: a log point is lost: {error}")

    def _rates(self) -> dict[str, float]:
        run, (began, batches) = self._run, self._rate_from
        now = time.monotonic()
        per_second = (run.batches - batches) / max(now - began, 1e-9)
        if now - began > 60.0:  # a recent rate: a slow start is forgotten
            self._rate_from = (now, run.batches)
        left = run.plan.recipe.budget.optimizer_steps - run.optimizer_steps
        cameras = len(run.plan.recipe.demos.cameras)
        return {
            "perf/images_per_s": per_second * run.samples_per_batch * cameras,
            "perf/learner_samples_per_s": per_second * run.samples_per_batch,
            "perf/seconds_left": left / per_second if per_second else 0.0,
        }

    def _line(self) -> str:
        run, latest = self._run, self.latest
        total = run.plan.recipe.budget.optimizer_steps
        parts = [
            f"[{duration(run.clocks.seconds)}] optimizer step {run.optimizer_steps:,}/{total:,}, "
            f"epoch {latest['supervised/epochs']:.1f}",
            f"loss {latest['supervised/loss']:.3f}, {_quality(latest, 'supervised')}",
            *([f"held out: {_quality(latest, 'held_out')}"] if "held_out/loss" in latest else []),
            f"{latest['perf/images_per_s']:,.0f} images/s",
            f"left {duration(latest['perf/seconds_left'])}",
        ]
        return " | ".join(parts)

    def _save_or_warn(self) -> CheckpointInfo | None:
        try:
            return self._run.save()
        except OSError as error:
            self._say(f"warning: no checkpoint at {self._run.optimizer_steps}: {error}")
            return None

    def _save_last(self) -> CheckpointInfo:
        saved = self._save_or_warn()
        if saved is None:
            run_dir = self._run.run_dir
            raise RunFailureError(
                f"the last checkpoint could not be written to {run_dir}. Free space and continue: "
                f"vla-rl {VERB} {as_argument(run_dir)} --resume"
            )
        return saved


def _quality(metrics: dict[str, float], group: str) -> str:
    return (
        f"cross-entropy {metrics[f'{group}/cross_entropy']:.3f}, accuracy {100 * metrics[f'{group}/accuracy']:.1f} %, "
        f"L1 {metrics[f'{group}/l1']:.4f}"
    )


def _evaluated(run_dir: Path) -> list[EvaluatedPoint]:
    """Return the evaluations in a run's log points."""
    metrics = run_dir / METRICS_FILE
    return evaluated_points(read_metrics(metrics)) if metrics.is_file() else []


def _evaluated_steps(run_dir: Path) -> set[int]:
    return {point.optimizer_steps for point in _evaluated(run_dir)}
