"""`vla-rl runs`: the runs below a folder, their states and how far they came."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_rl.errors import UserError
from vla_rl.reporting.text import ABSENT, age, duration, number, percent, printable

if TYPE_CHECKING:
    from vla_rl.reporting.run_index import IndexedRun

HEADER = ("run", "state", "success", "return", "optimizer steps", "env steps", "trained for", "begun", "last sign")


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Folder to search, four levels deep, or a run.", show_default=True)
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with one object per run.")] = False,
) -> None:
    """List runs with their state, success, progress and age. Only reads their files."""
    from vla_rl.reporting.run_index import as_json as row_as_json
    from vla_rl.reporting.run_index import find_runs, index_run

    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise UserError(
            f"{folder}: expected a folder of runs, found {found}; name one, or begin with `vla-rl train toy`"
        )
    found_runs = [index_run(path) for path in find_runs(folder)]
    now = time.time()
    if as_json:
        print("[" + ",\n ".join(row_as_json(run, now=now) for run in found_runs) + "]")
    elif found_runs:
        print(_table(sorted(found_runs, key=lambda run: -(run.seen or 0.0)), folder, now=now))
    else:
        print(f"no runs in {folder}")


def _table(found: list[IndexedRun], folder: Path, *, now: float) -> str:
    """Return the table, the newest sign of life first, with a run's reason below its row."""
    rows = [HEADER, *(_row(run, folder, now=now) for run in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    reasons = [None, *(run.reason for run in found)]
    return "\n".join(
        line if not reason else f"{line}\n    {printable(reason)}" for line, reason in zip(lines, reasons, strict=True)
    )


def _row(run: IndexedRun, folder: Path, *, now: float) -> tuple[str, ...]:
    name = str(run.path.relative_to(folder)) if run.path != folder else str(folder)
    done = number(run.optimizer_steps)
    return (
        printable(name),
        run.state,
        percent(run.success_rate),
        number(run.mean_return),
        done if run.budget_optimizer_steps is None else f"{done} of {number(run.budget_optimizer_steps)}",
        number(run.env_steps),
        duration(run.seconds),
        _local(run.started),
        ABSENT if run.seen is None else age(now - run.seen),
    )


def _local(started: str | None) -> str:
    """Format a moment in the zone of this machine, to the minute."""
    try:
        return ABSENT if started is None else f"{datetime.fromisoformat(started).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return ABSENT
