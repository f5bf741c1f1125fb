"""`vla-rl eval`: the success rate of a checkpoint, with intervals and a manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vla_rl.errors import UserError, preflight


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint's folder, or a run's: its latest checkpoint.")],
    suite: Annotated[
        str | None, typer.Option("--suite", help="LIBERO suite.", show_default="the one of the training")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Task ids, like 0,3 or 0-4.", show_default="those of the training")
    ] = None,
    episodes_per_task: Annotated[int, typer.Option("--episodes-per-task", min=1, help="Initial states per task.")] = 50,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Simulator processes.")] = 1,
    horizon: Annotated[
        int | None, typer.Option("--horizon", min=1, help="Control steps per episode.", show_default="the suite's own")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the environments; the policy is greedy.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where results are written.", show_default="eval/ of the run")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Evaluate a checkpoint on the benchmark's standard initial states."""
    task_ids = None if tasks is None else parse_tasks(tasks)

    from vla_rl.evaluation.evaluate import evaluate as run_evaluation

    with preflight():
        result = run_evaluation(
            checkpoint,
            suite=suite,
            tasks=task_ids,
            episodes_per_task=episodes_per_task,
            workers=workers,
            seed=seed,
            out=out,
            horizon=horizon,
            progress=_show_progress,
        )
    print(result.to_json() if as_json else result)


def _show_progress(done: int, total: int, successes: int) -> None:
    """One line that is written over on a terminal, ten lines in a log file."""
    text = f"{done}/{total} episodes, {successes} successes"
    if sys.stderr.isatty():
        print(f"\r{text}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total or done * 10 // total > (done - 1) * 10 // total:
        print(text, file=sys.stderr, flush=True)


def parse_tasks(text: str) -> list[int]:
    """`0,3-5` to [0, 3, 4, 5].

    Raises:
        UserError: not a list of ids and ranges, or an id twice.
    """
    ids: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"--tasks: found {text!r}; allowed are ids and ranges, like 0,3 or 0-4")
        ids += range(int(first), int(last or first) + 1)
    if len(set(ids)) != len(ids) or not ids:
        raise UserError(f"--tasks: found {text!r}; every id stands once, and a range runs upwards")
    return ids
