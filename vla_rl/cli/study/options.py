"""Options and helpers of the verbs of `vla-rl study`: values of options, and the end of a study."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vla_rl.errors import RunFailureError, UserError, preflight
from vla_rl.ipc.container import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from _typeshed import DataclassInstance

    from vla_rl.studies.jobs import Progress
    from vla_rl.studies.pages import WrittenStudy

    Plan = TypeVar("Plan", bound=DataclassInstance)

OutOption = Annotated[
    Path, typer.Option("--out", file_okay=False, help="Folder of the study; the same command continues it.")
]
RegimesOption = Annotated[
    str | None, typer.Option("--regimes", help="fresh, stale, or both.", show_default="the preset's")
]
SeedsOption = Annotated[
    int | None,
    typer.Option("--seeds", min=1, help="Number N of seeds; the seeds are 0 to N - 1.", show_default="the preset's"),
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Runs at the same time, one core each.", show_default="all cores")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show every stage and its cost in core minutes; start nothing.")
]


def names_in(text: str | None) -> tuple[str, ...] | None:
    """Return names that are separated by commas; None if the option was not given."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def with_chosen(preset: Plan, chosen: Mapping[str, object]) -> Plan:
    """Return a preset with the chosen fields in place of its own; None keeps the preset's."""
    return replace(preset, **{name: value for name, value in chosen.items() if value is not None})


def jobs_at_once(jobs: int | None) -> int:
    """Return how many jobs run at the same time: the option's number, or one for each core."""
    return jobs or usable_cores()


def require_matplotlib() -> None:
    """Refuse to begin what draws figures in the end.

    Raises:
        UserError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed, and the study draws figures with it: pip install 'vla-rl[plots]'")


def write_results(write_study: Callable[[Path], WrittenStudy], out: Path) -> None:
    """Write a study's results and say where they are."""
    with preflight():
        print("\n".join(f"wrote {path}" for path in write_study(out).files))


def require_success(progress: Progress, folder: Path, noun: str) -> None:
    """Raise RunFailureError if a job failed; its log is in `folder`."""
    if progress.failed:
        names = "\n".join(
            f"  {job.name}: see {folder}/{job.name}.failed/output.log"
            + (" (it goes on in this folder; without the folder it begins anew)" if job.continues else "")
            for job in progress.failed
        )
        waiting = f"; {len(progress.blocked)} others wait for them" if progress.blocked else ""
        raise RunFailureError(
            f"{len(progress.failed)} {noun} failed{waiting}; run the study again to retry them\n{names}"
        )
