"""`vla-rl study metaworld` and `merge`: surrogates on fresh and stale experience, on one machine or several."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vla_rl.cli.commentary import only_comments
from vla_rl.cli.study.options import (
    DryRunOption,
    JobsOption,
    OutOption,
    RegimesOption,
    SeedsOption,
    announce,
    carry_out,
    names_in,
    require_matplotlib,
    study_folder,
    with_chosen,
    write_results,
)


class Preset(StrEnum):
    """Grids that come with the program."""

    SMALL = "small"
    FULL = "full"
    PAPER = "paper"


def metaworld(  # noqa: PLR0913 - one parameter per option
    out: OutOption = None,
    preset: Annotated[
        Preset,
        typer.Option(
            "--preset",
            help="small: 30 short runs; full: the 400 of the authors' sweep (ten tasks, stale, eight settings), as "
            "short; paper: 720 at the paper's length (eight tasks, stale and fresh, nine settings).",
        ),
    ] = Preset.SMALL,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="Names of tasks, like door-open-v3,push-v3.", show_default="the preset's"),
    ] = None,
    surrogates: Annotated[
        str | None,
        typer.Option(
            "--surrogates",
            help="Some of gipo, gipo:SIGMA, gipo:SIGMA:NEGATIVE_SCALE, and the names of the other surrogates.",
            show_default="the preset's",
        ),
    ] = None,
    regimes: RegimesOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Recipe of all runs, with env.name metaworld: a name, or a file given with a slash or its .yaml.",
            show_default="the preset's",
        ),
    ] = None,
    seeds: SeedsOption = None,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            min=1,
            help="Optimizer steps per run; the size of the ring changes in proportion.",
            show_default="the preset's",
        ),
    ] = None,
    share: Annotated[
        str,
        typer.Option("--share", help="Share of the runs that this machine makes, like 1/4; merge the folders later."),
    ] = "1/1",
    jobs: JobsOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Compare surrogates on fresh and stale experience: a resumable grid of runs, statistics and figures."""
    require_matplotlib()
    folder = study_folder(out, dry_run=dry_run)
    from vla_rl.studies.metaworld.grid import PRESETS, Share
    from vla_rl.studies.metaworld.outputs import write_study
    from vla_rl.studies.metaworld.runner import finished_runs, work_of

    chosen: dict[str, object] = {"seeds": seeds, "optimizer_steps": budget, "recipe": recipe}
    chosen |= {"tasks": names_in(tasks), "surrogates": names_in(surrogates), "regimes": names_in(regimes)}
    grid = with_chosen(PRESETS[preset.value], chosen)
    work = work_of(grid, folder, share=Share.parse(share))
    at_once = announce(work, jobs)
    if not dry_run:
        carry_out(work, at_once=at_once, says_something=finished_runs, write_study=write_study)


def merge(
    folders: Annotated[
        list[Path],
        typer.Argument(exists=True, file_okay=False, help="Folders of one Meta-World study, each from a machine."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", file_okay=False, help="Folder of the whole study, new or one of them; it can be continued there."
        ),
    ],
) -> None:
    """Bring together the finished runs of a study that several machines made, and write its report."""
    require_matplotlib()
    from vla_rl.studies.metaworld.merging import merge_studies
    from vla_rl.studies.metaworld.outputs import write_study

    only_comments()
    merged = merge_studies(folders, out)
    print(
        f"{merged.copied} runs copied to {out}, {merged.kept} were there; {merged.copied + merged.kept} of "
        f"{merged.planned} are finished"
    )
    for folder, names in merged.unfinished.items():
        print(f"left in {folder}, not finished: {', '.join(names)}")
    for sentence in merged.broken:
        print(f"left, not whole: {sentence}")
    if merged.copied + merged.kept:
        write_results(write_study, out)
