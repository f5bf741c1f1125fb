"""`sft`: a recipe and demonstrations become a policy, in a checkpoint directory in the public layout."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vla_rl.errors import RunFailureError, preflight
from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.evaluate import evaluate
from vla_rl.evaluation.outcome import EvaluationReport
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.evaluation.while_training import (
    EvaluationStoppedError,
    check_options,
    in_words,
    play_or_warn,
    play_while_training,
)
from vla_rl.learner.checkpoint import CheckpointInfo
from vla_rl.learner.engine import NonFiniteUpdateError, UpdateResult
from vla_rl.learner.launch import launched_rank
from vla_rl.learner.notice_board import NoticeBoard
from vla_rl.learner.strategies import close_process_group
from vla_rl.policies.devices import free_device_memory
from vla_rl.recipe import OptimizerSteps, SupervisedRecipe
from vla_rl.reporting.evaluated_points import EvaluatedPoint, evaluated_points
from vla_rl.reporting.metrics_file import METRICS_FILE, MetricsWriter, read_metrics
from vla_rl.reporting.run_folder import as_argument
from vla_rl.reporting.run_layout import EVALUATIONS
from vla_rl.reporting.text import duration
from vla_rl.run.beginning import Beginning, Claim, find_beginning, found_in, is_first_rank, open_folder
from vla_rl.run.couriers import Couriers
from vla_rl.run.log import log_to
from vla_rl.run.plan import check_contradictions
from vla_rl.run.ranks import number_of_ranks, start_ranks
from vla_rl.run.signals import StopRequest
from vla_rl.run.trained_network import check_checkpoint
from vla_rl.sft.plan import SupervisedPlan, make_supervised_plan
from vla_rl.sft.sft_estimate import SupervisedReport, estimate
from vla_rl.sft.supervised_run import SupervisedRun, check_demonstrations
from vla_rl.sft.written_policy import check_suite, demonstrated, write_policy

SHOW_EVERY_S = 5.0
VERB = "sft"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SupervisedOutcome:
    """Outcome of a run, and its files."""

    run_dir: Path
    optimizer_steps: int
    metrics: dict[str, float]  # the newest value of each
    checkpoint: Path
    policy: Path | None  # checkpoint directory in the public layout; None: interrupted
    interrupted: bool
    reason: str  # why it ended by itself before its budget was spent; empty otherwise
    evaluation: EvaluationReport | None


def dry_run(recipe: SupervisedRecipe, *, run_dir: Path | None = None, resume: bool = False) -> SupervisedReport:
    """Describe a run: data, parameters, expected memory and disk. Reads all numbers of the data, and writes nothing.

    Args:
        recipe: everything about the run.
        run_dir: folder of the run; None: it is not looked at.
        resume: the run would be resumed, so that its recipe may hold values without effect.

    Raises:
        ValueError: the recipe cannot run here; the message says why and what to change.
    """
    newest = None if run_dir is None else found_in(run_dir, resume=resume, verb=VERB)
    plan = make_supervised_plan(recipe)
    if not resume:
        check_contradictions(plan.contradictions, source=recipe.name)
    if newest is not None:
        check_demonstrations(plan, newest.path, check_checkpoint(plan.policy, newest.path))
    check_evaluations(plan)
    return estimate(plan, num_ranks=number_of_ranks(recipe.learner, device=plan.device_kind))


def supervise(
    recipe: SupervisedRecipe, *, run_dir: Path, resume: bool, console: Console, board: NoticeBoard | None = None
) -> SupervisedOutcome | None:
    """Train a policy on demonstrations.

    Args:
        recipe: everything about the run.
        run_dir: folder of the run; created if it is missing.
        resume: resume from the newest complete checkpoint in `run_dir`; a new run if none was ever written.
        console: console that shows progress.
        board: of the ranks, in one of several (`vla_rl.run.ranks.ranks_together`).

    Returns:
        The outcome, on rank 0; None elsewhere, and in the process that only launched the ranks.

    Raises:
        UserError: the recipe, the data, the folder or the machine does not allow the run, or the ranks differ in what
            they have; nothing was trained.
    """
    with preflight():
        folder = open_folder(run_dir, resume=resume, verb=VERB)
        plan = make_supervised_plan(recipe)
        if not resume:
            check_contradictions(plan.contradictions, source=recipe.name)
        if is_first_rank():
            check_evaluations(plan)
        num_ranks = number_of_ranks(recipe.learner, device=plan.device_kind)
        start = find_beginning(recipe, folder, resume=resume, board=board, console=console)
    if num_ranks > 1 and launched_rank() is None:
        start_ranks(recipe.learner, num_ranks, device=plan.device_kind)
        return None
    os.environ.setdefault("OMP_NUM_THREADS", str(plan.threads))  # inherited by evaluations
    start.tell(plan.contradictions)
    with Couriers(recipe.logging.trackers(), folder.path, say=start.say) as couriers:
        with ExitStack() as stack:  # the folder stays this run's until the closing evaluation has ended
            with StopRequest() as stop:
                with preflight():
                    claim = stack.enter_context(start.claimed(together=True))
                outcome = _rank(plan, start, claim, stop, couriers)
            if outcome is not None:
                outcome = _with_evaluation(outcome, plan, start.say)
                claim.life.interrupted = outcome.interrupted
        if outcome is not None and not outcome.interrupted:
            couriers.finish("finished", couriers.closing_files())
    return outcome


def _rank(
    plan: SupervisedPlan, start: Beginning, claim: Claim, stop: StopRequest, couriers: Couriers
) -> SupervisedOutcome | None:
    """Train one rank to the end of its budget or to a request to stop. Nothing on a device outlives the call."""
    recipe, run_dir, say = plan.recipe, start.folder.path, start.say
    is_main = start.rank == 0
    with ExitStack() as stack:
        with preflight():
            run = stack.enter_context(
                SupervisedRun(
                    plan,
                    run_dir,
                    resume_from=start.newest,
                    rank=start.rank,
                    num_ranks=start.num_ranks,
                    built=start.compare_weights,
                )
            )
        cut_short = start.cut_short(recipe.budget, partial(_is_spent, run))
        start.record(
            recipe,
            claim,
            couriers,
            trains=not _is_spent(run),
            device=plan.device,
            assets=_assets_of(plan),
            extra=_data_of(plan),
        )
        writer = None
        if is_main:
            writer = start.metrics_writer(couriers, run.clocks, tensorboard=recipe.logging.tensorboard)
            stack.callback(writer.close)
            if plan.samples.kept_to_train:
                say(plan.samples.kept_to_train)
        stack.enter_context(log_to(run_dir / "logs" / f"{'' if is_main else f'rank_{start.rank}_'}learner.log"))
        with preflight():
            if run.optimizer_steps < recipe.budget.optimizer_steps:  # else at most the evaluation is left
                run.prepare(
                    _counter(say, "preparing frames, episode") if is_main else lambda _done, _total: None,
                    waits=lambda: say("waiting: another run is preparing the same frames"),
                    stop=lambda: stop.requested,
                )
        stage = Stage(run, say, writer, stop)
        checkpoint = stage.train()
        # A rank's machine may be asked to stop alone; all end with it.
        interrupted = run.engine.collectives.any_over_ranks(stop.requested and not _is_spent(run))
        claim.life.interrupted, claim.life.reason = interrupted, cut_short
        if not interrupted:
            run.forget_frames()
        close_process_group()
        if start.board is not None:
            start.board.leave()
        if not is_main:
            return None
        policy = None if interrupted else _write_last_policy(plan, checkpoint, run_dir)
    return SupervisedOutcome(
        run_dir, run.optimizer_steps, stage.latest, checkpoint.path, policy, interrupted, cut_short, evaluation=None
    )


def _write_last_policy(plan: SupervisedPlan, checkpoint: CheckpointInfo, run_dir: Path) -> Path:
    """Write the policy at the end of a run.

    Raises:
        RunFailureError: it could not be written; the message says how to go on.
    """
    try:
        return write_policy(plan, checkpoint, run_dir)
    except OSError as error:
        raise RunFailureError(
            f"the training is done and saved in {checkpoint.path}, but its policy could not be written: {error}. "
            f"Free space and continue: vla-rl {VERB} {as_argument(run_dir)} --resume"
        ) from error


def _with_evaluation(outcome: SupervisedOutcome, plan: SupervisedPlan, say: Say) -> SupervisedOutcome:
    """Make the closing evaluation of a run that has written its policy."""
    if outcome.policy is None or not plan.recipe.evaluation.episodes_per_task:
        return outcome
    free_device_memory()
    try:
        report = evaluate_policy(plan, outcome.policy, outcome.run_dir, outcome.optimizer_steps, say)
    except KeyboardInterrupt:  # the training is done and saved, so its outcome must still be reported
        return replace(outcome, interrupted=True)
    return replace(outcome, evaluation=report)


def _is_spent(run: SupervisedRun, budget: OptimizerSteps | None = None) -> bool:
    """Return whether a budget of optimizer steps or of time is used up: by default the recipe's."""
    budget = budget or run.plan.recipe.budget
    out_of_time = budget.minutes is not None and run.clocks.seconds > 60 * budget.minutes
    return out_of_time or run.optimizer_steps >= budget.optimizer_steps


class Stage:
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
        while run.optimizer_steps < total:
            if run.engine.collectives.any_over_ranks(self._stop.requested or _is_spent(run)):
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
            if step % recipe.logging.every_optimizer_steps == 0 or found:
                self._point(result, found)  # before the checkpoint: a run that goes on from there has it
            if step % recipe.checkpoint.every_optimizer_steps == 0 or self._is_evaluated(step):
                saved = self._save_or_warn()
            if saved is not None and self._is_evaluated(step):
                self._evaluate(saved)
        if unmeasured is not None and not run.engine.collectives.any_over_ranks(self._stop.requested):
            self._point_at_the_end(unmeasured)
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

    def _point_at_the_end(self, result: UpdateResult) -> None:
        """Write a log point of a run whose time is over, with what is held out, if anything is."""
        found = self._run.measure_held_out()
        if found:
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


def options_of_supervised(plan: SupervisedPlan) -> EvalOptions:
    """Return the options of the recipe's evaluations."""
    section, suite = plan.recipe.evaluation, plan.recipe.demos.suite
    assert suite is not None, "the recipe's rules ask for one"
    return EvalOptions(
        suites=(suite,),
        tasks=None if section.tasks == "all" else tuple(section.tasks),
        episodes_per_task=section.episodes_per_task,
        workers=section.workers,
        seeds=(plan.recipe.seed,),
        init_states=section.init_states,
        horizon=section.horizon,
        video=section.video,
    )


def check_evaluations(plan: SupervisedPlan) -> None:
    """Plan the recipe's evaluations, so that what cannot be evaluated is told before the training.

    The tiny model stands for the policy, which does not exist yet.

    Raises:
        ValueError: an evaluation would be refused; the message names the field.
    """
    recipe = plan.recipe
    if not recipe.evaluation.episodes_per_task:
        return
    source = replace(
        find_policy("tiny", profile="auto"),
        location=recipe.name,
        training=demonstrated(plan),
        num_images=len(recipe.demos.cameras),
    )
    check_options(source, options_of_supervised(plan), workers="evaluation.workers")
    check_suite(plan)


def evaluate_policy(
    plan: SupervisedPlan, policy: Path, run_dir: Path, optimizer_steps: int, say: Say
) -> EvaluationReport:
    """Play the recipe's closing evaluation with a written policy."""
    say(f"evaluating {policy} of optimizer step {optimizer_steps}")
    out = run_dir / EVALUATIONS / f"optimizer_step_{optimizer_steps}"
    return evaluate(policy, replace(options_of_supervised(plan), out=out))


def _assets_of(plan: SupervisedPlan) -> dict[str, str | None]:
    """Return where the weights and the data come from."""
    return {
        "checkpoint": getattr(plan.recipe.policy, "checkpoint", None),
        "demos": str(plan.demos.path.resolve()),
        "demos_digest": plan.digest(),
        "statistics": plan.key,
    }


def _data_of(plan: SupervisedPlan) -> dict[str, Any]:
    """Return how much data there is, and its instructions."""
    samples = plan.samples
    return {
        "episodes": len(samples.rollouts.length),
        "samples": {"train": len(samples.train), "held_out": len(samples.held_out)},
        "instructions": list(samples.rollouts.instructions),
    }


def _counter(say: Say, what: str) -> Callable[[int, int], None]:
    """Return a function that reports progress now and then."""
    shown = time.monotonic()

    def count(done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= SHOW_EVERY_S:
            shown = time.monotonic()
            say(f"{what} {done} of {total}")

    return count
