"""Ranks of a run: their number, their start as processes that run the same command, and the engine of each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

from vla_rl.container import usable_cores
from vla_rl.errors import RunFailureError, UserError
from vla_rl.learner.launch import launch_ranks, launched_rank
from vla_rl.recipe.sections import EngineSection
from vla_rl.run.signals import heed_signals

if TYPE_CHECKING:
    from torch import nn

    from vla_rl.learner.engine import Engine
    from vla_rl.learner.notice_board import NoticeBoard
    from vla_rl.rl.optimizer_section import AdamWSection

AnyEngine = TypeVar("AnyEngine", bound="Engine")


USER_ERROR = 2  # exit codes of a rank whose error another one tells
FAILURE = 1


@contextmanager
def ranks_together() -> Iterator[NoticeBoard | None]:
    """Let the ranks of a run begin and end together, from the first line of a verb on; yields their board.

    None is yielded in a process that is not one of several ranks. An error of one rank ends all. It is told by that
    rank, and by one rank of every other machine.

    Raises:
        UserError: of this rank, or of another one.
        AnotherRankError: another rank failed otherwise, or is gone.
        SystemExit: the same, where another rank of this machine tells it.
    """
    launched = launched_rank()
    if launched is None or launched[1] == 1:
        yield None
        return
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            "RANK and WORLD_SIZE are set, so this is one of several ranks, but LOCAL_RANK is not: without it a rank "
            "takes no GPU of its own and joins no group. Set it to the number of this rank on its machine (0 where "
            "each machine has one)"
        )
    from vla_rl.learner.notice_board import NoticeBoard
    from vla_rl.learner.rank_failures import AnotherRankError, AnotherRankRefusedError, CommonError

    speaks = os.environ["LOCAL_RANK"] == "0"
    try:
        with NoticeBoard.join(*launched, heed=heed_signals) as board:
            board.meet()
            yield board
    except (AnotherRankRefusedError, CommonError) as error:
        if speaks:
            raise
        raise SystemExit(USER_ERROR) from error
    except AnotherRankError as error:
        if speaks:
            raise
        raise SystemExit(FAILURE) from error


def number_of_ranks(learner: EngineSection, *, device: Literal["cpu", "cuda"]) -> int:
    """Return the number of ranks: the requested one, or one per GPU."""
    import torch

    if learner.strategy == "single":
        return 1
    if learner.num_ranks != "auto":
        return learner.num_ranks
    return 1 if device == "cpu" else torch.cuda.device_count()


def ranks_of_machine(learner: EngineSection, *, device: Literal["cpu", "cuda"]) -> int:
    """Return the ranks on this machine: those that a launcher has started here, else all that a run would start."""
    if launched_rank() is not None:
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return number_of_ranks(learner, device=device)


def cores_of_rank() -> int:
    """Return the cores of this rank: the usable ones, shared with the ranks beside it; at least 1.

    Ranks of torchrun and of Accelerate's launcher, which set LOCAL_WORLD_SIZE, share those of the launcher. A batch
    system that starts ranks itself gives each its own.
    """
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def start_ranks(learner: EngineSection, num_ranks: int, *, device: Literal["cpu", "cuda"]) -> None:
    """Run this command in as many processes, and wait for them.

    Raises:
        SystemExit: with their exit code, if it is not 0.
    """
    assert learner.strategy != "single"
    code = launch_ranks(sys.argv[1:], num_ranks=num_ranks, strategy=learner.strategy, device=device)
    if code:
        raise SystemExit(code)


def make_engine(
    kind: type[AnyEngine],
    policy: nn.Module,
    learner: EngineSection,
    *,
    device: Literal["cpu", "cuda"],
    optimizer: AdamWSection,
    total_steps: int,
    collective_timeout_s: float,
) -> AnyEngine:
    """Return the engine that a recipe asks for, around a policy.

    Args:
        kind: class of the engine.
        policy: network to train.
        learner: ranks and precision.
        device: kind of the ranks' devices.
        optimizer: learning rates and their schedule.
        total_steps: optimizer steps of the run, where a schedule ends.
        collective_timeout_s: longest wait of one rank for another, seconds.

    Raises:
        RunFailureError: this is one of several ranks, and the engine has not joined them.
    """
    engine = kind(
        policy,
        strategy=learner.strategy,
        zero_stage=learner.zero_stage,
        precision=learner.precision,
        device=device,
        optimizer=optimizer,
        total_steps=total_steps,
        collective_timeout_s=collective_timeout_s,
        compile=learner.compile,
    )
    launched = launched_rank()
    if launched is not None and engine.collectives.num_ranks != launched[1]:
        raise RunFailureError(
            f"rank {launched[0]} of {launched[1]} is in a group of {engine.collectives.num_ranks}: every rank would "
            "train alone. Start the ranks with torchrun or `accelerate launch`, and see that all have the same "
            "WORLD_SIZE"
        )
    return engine
