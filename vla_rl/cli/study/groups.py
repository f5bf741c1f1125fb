"""`vla-rl study groups`: a critic against groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_rl.cli.study.options import (
    DryRunOption,
    JobsOption,
    OutOption,
    SeedsOption,
    announce,
    carry_out,
    names_in,
    require_matplotlib,
    study_folder,
    with_chosen,
)
from vla_rl.errors import UserError


def groups(  # noqa: PLR0913 - one parameter per option
    out: OutOption = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="Some of ppo, grpo, grpo_dynamic, gipo, gipo_groups.", show_default="all"),
    ] = None,
    starts: Annotated[
        str | None,
        typer.Option(
            "--starts",
            help="Some of 0.1, 0.9 and 0.99: how often the untrained policy succeeds in the recipe gates.",
            show_default="all",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Recipe of all runs, with a critic, instead of --starts: a name, or a file with a slash or .yaml.",
            show_default="gates",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            exists=True,
            file_okay=False,
            resolve_path=True,
            help="Checkpoint that all runs start from, with --recipe.",
            show_default="the recipe's",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="Task ids, like 0,3 or 0-4, with --recipe; one environment each.",
            show_default="the recipe's",
        ),
    ] = None,
    target: Annotated[
        float | None, typer.Option("--target", min=0.0, max=1.0, help="Success rate to reach, with --recipe.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            min=1,
            help="Success is measured over this many latest episodes, with --recipe.",
            show_default="256",
        ),
    ] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", min=1, help="Env steps of every run, with --recipe.")
    ] = None,
    states: Annotated[
        int | None,
        typer.Option(
            "--states",
            min=1,
            help="Held-out initial states per task of LIBERO, in evaluations before and after, with --start.",
            show_default="no evaluation",
        ),
    ] = None,
    seeds: SeedsOption = None,
    jobs: JobsOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Compare a critic with groups, fresh and on replay, by the episodes that they need for a given success rate."""
    require_matplotlib()
    folder = study_folder(out, dry_run=dry_run)
    from vla_rl.cli.number_lists import parse_tasks
    from vla_rl.studies.grouped.outputs import write_study
    from vla_rl.studies.grouped.plan import PRESET, WINDOW, own_start, starts_named
    from vla_rl.studies.grouped.results import says_something
    from vla_rl.studies.grouped.runner import work_of

    of_recipe: dict[str, object] = {"--target": target, "--budget": budget, "--window": window, "--tasks": tasks}
    of_recipe |= {"--start": start, "--states": states}
    given = [option for option, value in of_recipe.items() if value is not None]
    if recipe is not None and (starts is not None or target is None or budget is None):
        raise UserError(
            "--recipe: a recipe of your own is its own start, and needs --target and --budget, not --starts"
        )
    if recipe is None and given:
        raise UserError(f"{' and '.join(given)}: only with --recipe; the preset's starts have their own")
    chosen: dict[str, object] = {"methods": names_in(methods), "seeds": seeds, "recipe": recipe}
    if recipe is not None and target is not None and budget is not None:
        own = own_start(
            recipe,
            target=target,
            env_steps=budget,
            window=window or WINDOW,
            tasks=None if tasks is None else parse_tasks(tasks),
            checkpoint=start,
            states=states or 0,
        )
        chosen["starts"] = (own,)
    elif (named := names_in(starts)) is not None:
        chosen["starts"] = starts_named(named)
    plan = with_chosen(PRESET, chosen)
    work = work_of(plan, folder)
    at_once = announce(work, jobs)
    if not dry_run:
        carry_out(work, at_once=at_once, says_something=says_something, write_study=write_study)
