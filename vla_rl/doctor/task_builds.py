"""Check that LIBERO builds every task from a folder of assets, which is the final test of the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vla_rl.envs.libero.child import Outcome, run_python
from vla_rl.types import TaskInfo

SECONDS = 600.0  # for all tasks together; one takes half a second
_BUILD = """
import sys
from vla_rl.envs.libero.assets import resolve_assets
from vla_rl.envs.libero.probes import build_simulation
from vla_rl.envs.libero.suites import libero_task
assets = resolve_assets(sys.argv[1])
for number, word in enumerate(sys.argv[2:], 1):
    suite, task_id = word.split(":")
    build_simulation(libero_task(suite, int(task_id)), assets).close()
    print(number, flush=True)
"""


def build_faults(
    folder: Path, tasks: Sequence[TaskInfo], *, run: Callable[..., Outcome] = run_python
) -> dict[TaskInfo, str]:
    """Compile the models of all tasks in one process, restarted after a task that ends it.

    Returns:
        The reason for each task that cannot be built.
    """
    faults: dict[TaskInfo, str] = {}
    rest = list(tasks)
    while rest:
        words = [f"{task.suite}:{task.task_id}" for task in rest]
        outcome = run(_BUILD, str(folder), *words, seconds=SECONDS)
        built = int(outcome.output) if outcome.output.isdecimal() else 0
        if outcome.ok or built == len(rest):  # the latter died at its exit
            break
        faults[rest[built]] = outcome.reason
        rest = rest[built + 1 :]
    return faults
