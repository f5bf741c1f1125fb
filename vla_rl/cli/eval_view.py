"""Display of an evaluation: its progress while it runs, its table at the end."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from vla_rl.evaluation.eval_results import SuiteSummary, TaskSummary
from vla_rl.evaluation.outcome import EvaluationReport
from vla_rl.evaluation.statistics import Interval
from vla_rl.reporting.text import duration, percent

LINES = 10  # progress lines, if the output is not a terminal


class EvaluationProgress:
    """Progress bar on a terminal, eleven lines in a log file; on stderr, so that stdout holds only the result."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._row = TaskID(0)
        self._began = 0.0
        self._before: int | None = None  # episodes played by an earlier, interrupted evaluation
        self._first: int | None = None  # episodes since the first that ended here; before it, processes started
        self._printed = -1  # tenths

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, successes: int) -> None:
        """Report that so many episodes of so many are done."""
        if self._before is None:
            self._before, self._printed = done, -1
        elif self._first is None:
            self._first, self._began = done, time.monotonic()
        line = f"{successes} successes, {self._time_left(done, total)}"
        if self._console.is_terminal:
            self._show_bar(done, total, line)
        elif done * LINES // total > self._printed:
            self._printed = done * LINES // total
            print(f"{done}/{total} episodes, {line}", file=sys.stderr, flush=True)

    def _time_left(self, done: int, total: int) -> str:
        if done == total:
            return "done"
        if self._first is None:
            return "starting"
        played = done - self._first
        if played == 0:
            return "no estimate yet"
        seconds = (time.monotonic() - self._began) / played * (total - done)
        return f"{duration(seconds)} left"

    def _show_bar(self, done: int, total: int, line: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("episodes, {task.fields[line]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._bar.start()
            self._row = self._bar.add_task("", total=total, line=line)
        self._bar.update(self._row, completed=done, line=line)


def print_report(report: EvaluationReport) -> None:
    """Print a table on a terminal, plain lines elsewhere."""
    console = Console()
    if not console.is_terminal:
        print(report)
        return
    console.print(results_table(report))
    for sentence in report.sentences()[1:]:  # the first one is shown below the table
        console.print(Text(sentence))


def results_table(report: EvaluationReport) -> Table:
    """Return one row per task and one per suite, within 80 columns."""
    level = percent(report.summary.confidence)
    caption = f"{report.checkpoint}, {report.sentences()[0]}"
    table = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("suite")
    table.add_column("task", justify="right")
    table.add_column("episodes", justify="right")
    table.add_column("success", justify="right", style="bold")
    table.add_column(f"Wilson {level}", justify="right", no_wrap=True)
    table.add_column("bootstrap", justify="right", no_wrap=True)
    table.add_column("steps", justify="right")
    for suite in report.summary.suites:
        for task in report.summary.tasks:
            if task.suite == suite.suite:
                table.add_row(*_cells(task, str(task.task_id), None))
        table.add_row(*_cells(suite, "all", suite.bootstrap), style="bold", end_section=True)
    return table


def _cells(row: TaskSummary | SuiteSummary, task: str, bootstrap: Interval | None) -> list[str]:
    return [
        row.suite,
        task,
        f"{row.successes}/{row.episodes}",
        percent(row.success_rate, digits=1),
        _interval(row.wilson),
        "" if bootstrap is None else _interval(bootstrap),
        f"{row.mean_env_steps:.0f}",
    ]


def _interval(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
