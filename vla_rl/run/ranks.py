"""Number of ranks of a run, and their start as processes that run the same command."""

from __future__ import annotations

import sys
from typing import Literal

from vla_rl.learner.launch import launch_ranks
from vla_rl.recipe.sections import EngineSection


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
