"""`vla-rl study libero`: from demonstrations to a cloned policy that RL changes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
)


class Preset(StrEnum):
    """Sizes of the LIBERO study that come with the program."""

    TINY = "tiny"
    SMALL = "small"
    FULL = "full"


def libero(  # noqa: PLR0913 - one parameter per option
    out: OutOption = None,
    preset: Annotated[
        Preset,
        typer.Option(
            "--preset",
            help="small: 4 runs, about an hour on 2 cores; full: 24 runs; tiny: every stage once, as a test.",
        ),
    ] = Preset.SMALL,
    surrogates: Annotated[
        str | None,
        typer.Option(
            "--surrogates",
            help="Some of gipo, gipo:SIGMA, gipo:SIGMA:NEGATIVE_SCALE, the names of the other surrogates, and lr0, a "
            "policy that never changes.",
            show_default="the preset's",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="Task ids of the recipe's suite, like 0,3 or 0-4.", show_default="the preset's"),
    ] = None,
    regimes: RegimesOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Recipe of all runs, with env.name libero, and their suite: a name, or a file with a slash or .yaml.",
            show_default="the preset's",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            exists=True,
            file_okay=False,
            resolve_path=True,
            help="Checkpoint that all runs start from, such as a public one. Without it demonstrations are collected "
            "and a tiny policy is cloned from them.",
            show_default=False,
        ),
    ] = None,
    seeds: SeedsOption = None,
    budget: Annotated[
        int | None, typer.Option("--budget", min=1, help="Optimizer steps per run.", show_default="the preset's")
    ] = None,
    init_states: Annotated[
        str | None,
        typer.Option(
            "--init-states",
            help="sampled: LIBERO's own sampler, with evaluation on the benchmark's stored states; widened: the scene "
            "also moves, with evaluation on other draws.",
            show_default="the preset's",
        ),
    ] = None,
    states: Annotated[
        int | None,
        typer.Option(
            "--states",
            min=1,
            help="Held-out initial states per task, in each evaluation before and after RL.",
            show_default="the preset's",
        ),
    ] = None,
    jobs: JobsOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Collect demonstrations, clone them, improve the policy with RL, and compare before and after."""
    require_matplotlib()
    folder = study_folder(out, dry_run=dry_run)
    from vla_rl.cli.number_lists import parse_tasks
    from vla_rl.studies.libero.outputs import write_study
    from vla_rl.studies.libero.plan import ENV, PRESETS
    from vla_rl.studies.libero.results import says_something
    from vla_rl.studies.libero.runner import work_of
    from vla_rl.studies.study_plan import base_recipe

    chosen: dict[str, object] = {"arms": names_in(surrogates), "regimes": names_in(regimes), "recipe": recipe}
    chosen |= {"tasks": None if tasks is None else tuple(parse_tasks(tasks))}
    chosen |= {"seeds": seeds, "optimizer_steps": budget, "states": states, "init_states": init_states}
    chosen |= {"start": None if start is None else str(start)}
    chosen |= {"suite": None if recipe is None else base_recipe(recipe, env=ENV).env.suite_name}
    plan = with_chosen(PRESETS[preset.value], chosen)
    work = work_of(plan, folder)
    at_once = announce(work, jobs)
    if not dry_run:
        carry_out(work, at_once=at_once, says_something=says_something, write_study=write_study)
