"""Options and helpers of the verbs of `vla-rl study`: values of options, and the end of a study."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vla_rl.cli.commentary import only_comments
from vla_rl.errors import RunFailureError, UserError, preflight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from _typeshed import DataclassInstance

    from vla_rl.studies.jobs import Progress, Work
    from vla_rl.studies.pages import WrittenStudy

    Plan = TypeVar("Plan", bound=DataclassInstance)

OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        file_okay=False,
        help="Folder of the study; the same command continues it. Only a dry run needs none.",
        show_default=False,
    ),
]
RegimesOption = Annotated[
    str | None, typer.Option("--regimes", help="fresh, stale, or both.", show_default="the preset's")
]
SeedsOption = Annotated[
    int | None,
    typer.Option("--seeds", min=1, help="Number N of seeds; the seeds are 0 to N - 1.", show_default="the preset's"),
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Runs at the same time, one core each.",
        show_default="all cores, fewer if the estimated memory is short, a GPU's too",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would run and how long it would take; start and write nothing.")
]
NOWHERE = Path(os.devnull) / "study"  # folder of a dry run that names none: nothing can be in it


def names_in(text: str | None) -> tuple[str, ...] | None:
    """Return names that are separated by commas; None if the option was not given."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def with_chosen(preset: Plan, chosen: Mapping[str, object]) -> Plan:
    """Return a preset with the chosen fields in place of its own; None keeps the preset's."""
    return replace(preset, **{name: value for name, value in chosen.items() if value is not None})


def study_folder(out: Path | None, *, dry_run: bool) -> Path:
    """Return the folder of a study.

    Raises:
        UserError: none was given, and this is no dry run.
    """
    if out is None and not dry_run:
        raise UserError("Missing option '--out', the folder of the study; only --dry-run needs none")
    return out or NOWHERE


def announce(work: Work, jobs: int | None) -> int:
    """Print what is left of a study and its price; return how many jobs run at the same time.

    Args:
        work: the study's jobs.
        jobs: jobs at the same time that were asked for; None: as many as the machine has room for.

    Raises:
        UserError: so many jobs do not fit in memory.
    """
    from vla_rl.studies.price import check_memory, price, usual_jobs, why_one

    at_once = jobs or usual_jobs(work)
    print(price(work, at_once=at_once))
    if jobs is None and (why := why_one(work)):
        print(why)
    check_memory(work, at_once=at_once)
    return at_once


def require_matplotlib() -> None:
    """Refuse to begin what draws figures in the end.

    Raises:
        UserError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed, and the study draws figures with it: pip install 'vla-rl[plots]'")


def carry_out(
    work: Work, *, at_once: int, says_something: Callable[[Path], object], write_study: Callable[[Path], WrittenStudy]
) -> None:
    """Run what is left of a study and write its results, of an interrupted one too.

    Args:
        work: the study's jobs.
        at_once: jobs of one core that run at the same time.
        says_something: whether there is a result in the study's folder, by its truth.
        write_study: writes the results to the study's folder.

    Raises:
        UserError: as of `run_study`; nothing was started.
        RunFailureError: a job failed.
        KeyboardInterrupt: Ctrl-C, SIGTERM or a closed terminal.
    """
    from vla_rl.studies.jobs import run_study

    only_comments()
    progress = run_study(work, at_once=at_once, say=partial(print, flush=True))
    if says_something(work.out):
        try:
            write_results(write_study, work.out)
        except UserError as error:
            if not (progress.interrupted or progress.failed):
                raise
            print(f"no results were written: {error}", file=sys.stderr)  # what ended the study is told as well
    if progress.interrupted:
        raise KeyboardInterrupt
    _require_success(progress, work)


def write_results(write_study: Callable[[Path], WrittenStudy], out: Path) -> None:
    """Write a study's results and say where they are."""
    with preflight():
        print("\n".join(f"wrote {path}" for path in write_study(out).files))


def _require_success(progress: Progress, work: Work) -> None:
    """Raise RunFailureError if a job failed."""
    if progress.failed:
        names = "\n".join(
            f"  {job.name}: see {work.folder}/{job.name}.failed/output.log"
            + (" (it goes on in this folder; without the folder it begins anew)" if job.continues else "")
            for job in progress.failed
        )
        noun = work.noun.removesuffix("s") if len(progress.failed) == 1 else work.noun
        waiting = f"; {len(progress.blocked)} others wait for them" if progress.blocked else ""
        raise RunFailureError(
            f"{len(progress.failed)} {noun} failed{waiting}; run the study again to retry them\n{names}"
        )
