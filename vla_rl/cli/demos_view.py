"""Display of a collection of demonstrations: its progress while it runs, its table at the end."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vla_rl.reporting.text import duration

if TYPE_CHECKING:
    from vla_rl.collection.collecting import Collection, Progress

LINES = 20  # progress lines, if the output is not a terminal


class CollectionProgress:
    """One line that changes on a terminal, some lines in a log file; on stderr, so that stdout holds only results."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._printed = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def __call__(self, progress: Progress) -> None:
        """Report where a collection stands."""
        line = f"{progress.collected}/{progress.wanted} episodes, {progress.failed} failed, {self._pace(progress)}"
        if self._is_terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif progress.collected * LINES // progress.wanted > self._printed:
            self._printed = progress.collected * LINES // progress.wanted
            print(line, file=sys.stderr, flush=True)

    def _pace(self, progress: Progress) -> str:
        now = progress.collected - progress.earlier
        if not now:
            return "starting" if progress.collected < progress.wanted else "done"
        seconds = (time.monotonic() - self._began) / now
        left = seconds * (progress.wanted - progress.collected)
        return f"{60 / seconds:.1f} per minute, " + (f"{duration(left)} left" if left else "done")


def collected(result: Collection, out: Path) -> str:
    """Return a table of what was collected."""
    lines = [f"{'task':>5}{'episodes':>10}{'played':>8}{'steps':>7}{'CPU s':>7}  name"]
    for tally in result.tallies:
        done = tally.successes
        steps = f"{tally.rows / tally.successes_now:.0f}" if tally.successes_now else "-"
        seconds = f"{tally.seconds / tally.played:.2f}" if tally.played else "-"
        counts = f"{done:>10}{len(tally.attempts):>8}" if not tally.was_complete else f"{done:>8} as before"
        lines.append(f"{tally.task.task_id:>5}{counts}{steps:>7}{seconds:>7}  {tally.task.name}")
    lines.append(f"{out}: steps of a successful episode and CPU seconds of an episode are means of this call")
    return "\n".join(lines)
