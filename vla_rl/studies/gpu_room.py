"""Free memory of the GPU that the runs of a study share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from vla_rl.envs.libero.child import Outcome, run_python

ASK_SECONDS = 180.0
_ASK = "import torch; print(torch.cuda.mem_get_info(0)[0])"


@cache
def available_gpu_memory(*, run: Callable[..., Outcome] = run_python) -> int | None:
    """Return the bytes that are free on the first visible GPU; None where they cannot be asked for.

    A process of its own asks: a context would take memory there for as long as the study runs. Its own is not counted
    as free.
    """
    answer = run(_ASK, seconds=ASK_SECONDS)
    return int(answer.output) if answer.ok and answer.output.isdigit() else None
