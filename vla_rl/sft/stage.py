"""`sft`: a recipe and demonstrations become a policy, in a checkpoint directory in the public layout."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vla_rl.errors import RunFailureError, preflight
from vla_rl.evaluation.outcome import EvaluationReport
from vla_rl.learner.checkpoint import CheckpointInfo
from vla_rl.learner.launch import launched_rank
from vla_rl.learner.notice_board import NoticeBoard
from vla_rl.learner.strategies import close_process_group
from vla_rl.policies.devices import free_device_memory
from vla_rl.recipe import SupervisedRecipe
from vla_rl.reporting.run_folder import as_argument
from vla_rl.run.beginning import Beginning, Claim, find_beginning, found_in, is_first_rank, open_folder
from vla_rl.run.couriers import Couriers
from vla_rl.run.log_file import log_to
from vla_rl.run.plan import check_contradictions
from vla_rl.run.ranks import number_of_ranks, start_ranks
from vla_rl.run.signals import StopRequest
from vla_rl.run.trained_network import check_checkpoint
from vla_rl.sft.plan import SupervisedPlan, make_supervised_plan
from vla_rl.sft.sft_estimate import SupervisedReport, estimate
from vla_rl.sft.supervised_evaluations import check_evaluations, evaluate_policy
from vla_rl.sft.supervised_loop import SHOW_EVERY_S, SupervisedLoop
from vla_rl.sft.supervised_run import VERB, Say, SupervisedRun, check_demonstrations
from vla_rl.sft.written_policy import write_policy


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
        cut_short = start.cut_short(recipe.budget, run.is_spent)
        start.record(
            recipe,
            claim,
            couriers,
            trains=not run.is_spent(),
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
        loop = SupervisedLoop(run, say, writer, stop)
        checkpoint = loop.train()
        # A rank's machine may be asked to stop alone; all end with it.
        interrupted = run.engine.collectives.any_over_ranks(stop.requested and not run.is_spent())
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
        run_dir, run.optimizer_steps, loop.latest, checkpoint.path, policy, interrupted, cut_short, evaluation=None
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
