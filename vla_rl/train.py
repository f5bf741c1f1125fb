"""`train`: a recipe, a folder, a policy. The top of the program; everything below takes plain arguments."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from vla_rl.errors import CellFailureError, NoSignalError, RunFailureError, preflight
from vla_rl.evaluation.evaluate import evaluate
from vla_rl.evaluation.outcome import EvaluationReport
from vla_rl.evaluation.run_evaluations import Evaluations
from vla_rl.evaluation.while_training import check_evaluation, options_of
from vla_rl.ipc.memory_check import check_room
from vla_rl.learner.checkpoint import CheckpointInfo
from vla_rl.learner.engine import NonFiniteUpdateError
from vla_rl.learner.launch import launched_rank
from vla_rl.learner.notice_board import NoticeBoard
from vla_rl.learner.strategies import close_process_group
from vla_rl.policies.devices import free_device_memory
from vla_rl.recipe import BudgetSection, Recipe
from vla_rl.reporting.live import make_display
from vla_rl.reporting.metrics_file import Clocks
from vla_rl.reporting.run_folder import as_argument
from vla_rl.run.beginning import Beginning, Claim, find_beginning, found_in, is_first_rank, open_folder
from vla_rl.run.couriers import Couriers
from vla_rl.run.estimate import DryRunReport, Line, estimate
from vla_rl.run.folder import assets_of
from vla_rl.run.log import RunLog
from vla_rl.run.log_file import log_to
from vla_rl.run.plan import TrainingPlan, check_contradictions, check_other_machines, make_training_plan
from vla_rl.run.ranks import number_of_ranks, ranks_of_machine, start_ranks
from vla_rl.run.signals import StopRequest
from vla_rl.run.statistics_key import STATISTICS, check_statistics
from vla_rl.run.trained_network import check_checkpoint
from vla_rl.run.training import TrainingRun
from vla_rl.types import SegmentBatch


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """Outcome of a run, and its files."""

    run_dir: Path
    clocks: Clocks  # summed over all ranks
    metrics: dict[str, float]  # the last log point
    checkpoint: Path
    interrupted: bool
    reason: str  # why it ended by itself before its budget was spent; empty otherwise
    spent: str  # the budget that ended it, as an override of its recipe; empty if none did
    evaluation: EvaluationReport | None


def dry_run(recipe: Recipe, *, run_dir: Path | None = None, resume: bool = False) -> DryRunReport:
    """Describe a run: processes, shapes, shared memory, parameters, expected memory. Starts and writes nothing.

    Args:
        recipe: everything about the run.
        run_dir: folder of the run; None: it is not looked at.
        resume: the run would be resumed, so that its recipe may hold values without effect.

    Raises:
        ValueError: the recipe cannot run here; the message says why and what to change.
    """
    plan = make_training_plan(recipe)
    if not resume:
        check_contradictions(plan.policy.contradictions, source=recipe.name)
    if run_dir is not None:
        newest = found_in(run_dir, resume=resume, verb="train")
        if newest is not None:
            extra = check_checkpoint(plan.policy, newest.path)
            check_statistics(plan.policy, newest.path, extra.get(STATISTICS))
    check_evaluation(plan.recipe)
    answers = check_other_machines(plan)
    report = estimate(plan, num_ranks=number_of_ranks(plan.recipe.learner, device=plan.device_kind))
    report = replace(report, lines=(*report.lines, *(Line("other machine", answer) for answer in answers)))
    try:
        check_room(report.shared_memory_bytes)
    except ValueError as error:  # too small here; the estimate is still for the requested size
        raise ValueError(f"{error}\n\n{report}") from error
    return report


def train(
    recipe: Recipe, *, run_dir: Path, resume: bool, console: Console, board: NoticeBoard | None = None
) -> TrainOutcome | None:
    """Train a policy.

    Args:
        recipe: everything about the run.
        run_dir: folder of the run; created if it is missing.
        resume: resume from the newest complete checkpoint in `run_dir`; a new run if none was ever written.
        console: console that shows progress.
        board: of the ranks, in one of several (`vla_rl.run.ranks.ranks_together`).

    Returns:
        The outcome, on rank 0; None elsewhere, and in the process that only launched the ranks.

    Raises:
        UserError: the recipe, the folder or the machine does not allow the run, or the ranks differ in what they have;
            nothing was started or overwritten.
        CellFailureError: a part failed for good; the message holds the child's traceback.
        NoSignalError: nothing that is collected can be learned from, because nothing succeeds; the message says more.
    """
    with preflight():
        plan = make_training_plan(recipe)
        if not resume:
            check_contradictions(plan.policy.contradictions, source=recipe.name)
        num_ranks = number_of_ranks(plan.recipe.learner, device=plan.device_kind)
        folder = open_folder(run_dir, resume=resume, verb="train")
        if is_first_rank():
            check_evaluation(plan.recipe)
            check_other_machines(plan)
            here = ranks_of_machine(plan.recipe.learner, device=plan.device_kind)
            check_room(estimate(plan, num_ranks=here).shared_memory_bytes)
        start = find_beginning(recipe, folder, resume=resume, board=board, console=console)
    if num_ranks > 1 and launched_rank() is None:
        start_ranks(plan.recipe.learner, num_ranks, device=plan.device_kind)
        return None
    os.environ.setdefault("OMP_NUM_THREADS", str(plan.threads))  # inherited by the children
    start.tell(plan.policy.contradictions)
    with Couriers(recipe.logging.trackers(), folder.path, say=start.say) as couriers:
        with ExitStack() as stack:  # the folder stays this run's until the closing evaluation has ended
            with StopRequest() as stop:
                with preflight():
                    claim = stack.enter_context(start.claimed())
                outcome = _train_rank(plan, start, claim, stop, console, couriers)
            if board is not None:
                board.leave()
            if start.rank != 0:
                return None
            outcome = _with_evaluation(outcome, recipe, start.say)
            claim.life.interrupted = outcome.interrupted
        if not outcome.interrupted:
            couriers.finish("finished", couriers.closing_files())
    return outcome


def _train_rank(
    plan: TrainingPlan, start: Beginning, claim: Claim, stop: StopRequest, console: Console, couriers: Couriers
) -> TrainOutcome:
    """Train one rank to the end of its budget or to a request to stop. Nothing on a device outlives the call."""
    recipe, run_dir, board = plan.recipe, start.folder.path, start.board
    with ExitStack() as stack:
        with preflight():
            run = stack.enter_context(
                TrainingRun(
                    plan,
                    run_dir,
                    resume_from=start.newest,
                    rank=start.rank,
                    num_ranks=start.num_ranks,
                    is_keeper=claim.is_keeper,
                    built=start.compare_weights,
                )
            )
        cut_short = start.cut_short(recipe.budget, lambda budget: bool(_spent(run, budget)))
        start.record(
            recipe,
            claim,
            couriers,
            trains=not _spent(run, recipe.budget),
            device=plan.device,
            assets=assets_of(plan),
            deviations=plan.env.deviations,
        )
        writer = display = None
        if start.rank == 0:
            writer = start.metrics_writer(couriers, run.clocks, tensorboard=recipe.logging.tensorboard)
            stack.callback(writer.close)
            display = make_display(console, total_optimizer_steps=recipe.budget.optimizer_steps)
            stack.callback(display.close)
        stack.enter_context(log_to(run.log_dir / "learner.log"))
        run_log = RunLog(run, run.engine.collectives, writer=writer, display=display)
        if start.newest is not None:
            run_log.tell_what_is_left_behind()
        evaluations = Evaluations(
            run, run_log, lambda: stop.requested or (board is not None and board.failure is not None)
        )
        checkpoint = _loop(run, run_log, stop, evaluations, board)
        # A rank's machine may be asked to stop alone; all end with it.
        life = claim.life
        life.interrupted = run.engine.collectives.any_over_ranks(stop.requested)
        life.reason = evaluations.verdict or _reason(run) or cut_short
        clocks = run_log.global_clocks()
        spent = _spent(run, recipe.budget)
        close_process_group()
    report = evaluations.report_of(clocks.optimizer_steps)
    return TrainOutcome(run_dir, clocks, run_log.latest, checkpoint.path, life.interrupted, life.reason, spent, report)


def _reason(run: TrainingRun) -> str:
    """Return why the run ended by itself before its budget was spent, on every rank; empty if it did not."""
    is_solved = run.engine.collectives.any_over_ranks(bool(run.solved))
    return run.solved or ("another rank has nothing left to learn from" if is_solved else "")


def _with_evaluation(outcome: TrainOutcome, recipe: Recipe, say: Callable[[str], None]) -> TrainOutcome:
    """Make the closing evaluation of a run that made none while it trained and was not interrupted."""
    section = recipe.evaluation
    if not section.episodes_per_task or section.every_optimizer_steps is not None or outcome.interrupted:
        return outcome
    free_device_memory()  # the evaluation loads the policy again, and a card may not hold it twice
    try:
        return replace(outcome, evaluation=_closing_evaluation(recipe, outcome.checkpoint, say))
    except KeyboardInterrupt:  # the training is done and saved, so its outcome must still be reported
        return replace(outcome, interrupted=True)


def _loop(
    run: TrainingRun, run_log: RunLog, stop: StopRequest, evaluations: Evaluations, board: NoticeBoard | None
) -> CheckpointInfo:
    """Wait, update, publish, log, checkpoint, evaluate; returns the last checkpoint.

    Ranks decide together whether to continue, so that none waits in a collective that others never join. A cell that
    fails, or collects nothing to learn from, ends the loop on all ranks; they save together before its rank raises.
    A rank whose policy solves what it plays ends the loop as the end of the budget does, and so does an evaluation
    that reaches the target, or one after too many without a gain.
    """
    earlier = run.resumed_from
    if earlier is not None and earlier.is_in_place:
        evaluations.catch_up(earlier)
    is_over = stop.requested or bool(_spent(run, run.plan.recipe.budget)) or evaluations.is_over
    if run.engine.collectives.any_over_ranks(is_over):  # do not start processes that would have nothing to do
        saved = earlier if earlier is not None and earlier.is_in_place else _save_last(run, run_log, earlier=earlier)
    else:
        saved = _learn(run, run_log, stop, evaluations, board)
    if not run.engine.collectives.any_over_ranks(stop.requested):
        evaluations.catch_up(saved, is_last=True)
    return saved


def _learn(
    run: TrainingRun, run_log: RunLog, stop: StopRequest, evaluations: Evaluations, board: NoticeBoard | None
) -> CheckpointInfo:
    """Start the processes and learn until the end; returns the last checkpoint."""
    recipe, totals, earlier = run.plan.recipe, run.totals, run.resumed_from

    def poll() -> bool:
        run_log.show()
        if board is not None:
            board.check()
        return stop.requested or bool(_spent(run, recipe.budget))

    run.start()
    saved: CheckpointInfo | None = None  # the current policy
    failure: RunFailureError | None = None
    while totals.optimizer_steps < recipe.budget.optimizer_steps and not evaluations.is_over:
        batch, failure = _wait(run, poll)
        if run.engine.collectives.any_over_ranks(batch is None):
            break
        assert batch is not None
        done = totals.optimizer_steps
        metrics = _update(run, batch)
        is_applied = totals.optimizer_steps > done  # otherwise there is nothing new to publish or to save
        if is_applied:
            earlier, saved = saved or earlier, None
            run.publish_if_due()
        if run.has_log_point(totals.optimizer_steps):
            run_log.point(metrics)
        if is_applied:
            saved = _save_if_due(run, run_log, evaluations)
    if failure is not None:
        saved = saved or _save_or_warn(run, run_log)
        raise failure
    return saved or _save_last(run, run_log, earlier=earlier)


def _save_if_due(run: TrainingRun, run_log: RunLog, evaluations: Evaluations) -> CheckpointInfo | None:
    """Write a checkpoint if one is due, and evaluate it if that is; None if none was written."""
    step = run.totals.optimizer_steps
    is_evaluated = evaluations.are_due(step)
    if not is_evaluated and step % run.plan.recipe.checkpoint.every_optimizer_steps:
        return None
    saved = _save_or_warn(run, run_log)
    run_log.measure_disk()
    if saved is not None and is_evaluated:
        evaluations.make(saved)
    return saved


def _save_last(run: TrainingRun, run_log: RunLog, *, earlier: CheckpointInfo | None) -> CheckpointInfo:
    """Write the checkpoint at the end of a run.

    Raises:
        RunFailureError: it could not be written; the message says what to resume from.
    """
    saved = _save_or_warn(run, run_log)
    if saved is not None:
        return saved
    resume = f"vla-rl train {as_argument(run.run_dir)} --resume"
    raise RunFailureError(
        f"the last checkpoint could not be written to {run.run_dir}. "
        + (
            f"Make room, and go on from {earlier.path}: {resume}"
            if earlier is not None
            else f"No other was written, so what was learned is lost. Make room, and begin anew: {resume}"
        )
    )


def _spent(run: TrainingRun, budget: BudgetSection) -> str:
    """Return the field of a budget that is used up, with its value, as an override; empty if none is."""
    if run.totals.optimizer_steps >= budget.optimizer_steps:
        return f"budget.optimizer_steps={budget.optimizer_steps}"
    if budget.minutes is not None and run.clocks.seconds > 60 * budget.minutes:
        return f"budget.minutes={budget.minutes:g}"
    if budget.env_steps is not None and run.env_steps_of_all_ranks >= budget.env_steps:
        return f"budget.env_steps={budget.env_steps}"
    return ""


def _wait(run: TrainingRun, poll: Callable[[], bool]) -> tuple[SegmentBatch | None, RunFailureError | None]:
    """Return the next batch, or why there is none: None twice if a stop was requested."""
    try:
        return run.wait_for_batch(poll), None
    except (CellFailureError, NoSignalError) as failure:
        return None, failure


def _update(run: TrainingRun, batch: SegmentBatch) -> dict[str, float]:
    """Make one update; if it finally fails, the run fails with a message in one sentence."""
    try:
        return run.update(batch)
    except NonFiniteUpdateError as error:
        raise RunFailureError(str(error)) from error


def _save_or_warn(run: TrainingRun, run_log: RunLog) -> CheckpointInfo | None:
    """Write a checkpoint; a full disk costs this one, not the run."""
    try:
        return run.save(run_log.global_clocks())
    except OSError as error:
        run_log.say(f"warning: no checkpoint at optimizer step {run.totals.optimizer_steps}: {error}")
        return None


def _closing_evaluation(recipe: Recipe, checkpoint: Path, say: Callable[[str], None]) -> EvaluationReport:
    say(f"evaluating {checkpoint}")
    return evaluate(checkpoint, options_of(recipe))
