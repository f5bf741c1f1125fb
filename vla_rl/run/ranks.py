"""Ranks of a run: their number, their start as processes that run the same command, and the engine of each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal, TypeVar

from vla_rl.learner.launch import launch_ranks
from vla_rl.recipe.sections import EngineSection

if TYPE_CHECKING:
    from torch import nn

    from vla_rl.learner.engine import Engine
    from vla_rl.rl.optimizer_section import AdamWSection

AnyEngine = TypeVar("AnyEngine", bound="Engine")


def number_of_ranks(learner: EngineSection, *, device: Literal["cpu", "cuda"]) -> int:
    """Return the number of ranks: the requested one, or one per GPU."""
    import torch

    if learner.strategy == "single":
        return 1
    if learner.num_ranks != "auto":
        return learner.num_ranks
    return 1 if device == "cpu" else torch.cuda.device_count()


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
    """
    return kind(
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
