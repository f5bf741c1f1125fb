"""`vla-rl study`: the GIPO paper's experiments, and others, as commands."""

from __future__ import annotations

import os
from dataclasses import replace
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla_rl.cli import study_figures
from vla_rl.cli.commentary import only_comments
from vla_rl.errors import RunFailureError, UserError, preflight

if TYPE_CHECKING:
    from collections.abc import Callable

    from vla_rl.studies.jobs import Progress
    from vla_rl.studies.pages import WrittenStudy

app = typer.Typer(no_args_is_help=True, help="Run a study: the GIPO paper's experiments, and others.")


class Preset(StrEnum):
    """Grids that come with the program."""

    SMALL = "small"
    FULL = "full"
    PAPER = "paper"


class LiberoPreset(StrEnum):
    """Sizes of the LIBERO study that come with the program."""

    TINY = "tiny"
    SMALL = "small"
    FULL = "full"


app.command("figures")(study_figures.figures)


@app.callback()
def study() -> None:
    """Run a study: the GIPO paper's experiments, and others."""


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


@app.command()
def metaworld(  # noqa: PLR0913 - one parameter per option
    out: OutOption,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and how long it would take; start nothing.")
    ] = False,
) -> None:
    """Compare surrogates on fresh and stale experience: a resumable grid of runs, statistics and figures."""
    _require_matplotlib()
    from vla_rl.studies.metaworld.duration import estimate
    from vla_rl.studies.metaworld.grid import PRESETS, Share
    from vla_rl.studies.metaworld.outputs import write_study
    from vla_rl.studies.metaworld.runner import run_grid

    chosen: dict[str, Any] = {"tasks": _names(tasks), "surrogates": _names(surrogates), "regimes": _names(regimes)}
    chosen |= {"seeds": seeds, "optimizer_steps": budget, "recipe": recipe}
    grid = replace(PRESETS[preset.value], **{name: value for name, value in chosen.items() if value is not None})
    at_once = jobs or len(os.sched_getaffinity(0))
    own = Share.parse(share)
    print(estimate(grid, jobs=at_once, share=own))
    if dry_run:
        return
    only_comments()
    progress = run_grid(grid, out, jobs=at_once, say=partial(print, flush=True), share=own)
    if progress.kept or progress.finished:
        _write(write_study, out)
    _require_success(progress, out / "runs", "runs")


@app.command()
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
    _require_matplotlib()
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
        _write(write_study, out)


def _write(write_study: Callable[[Path], WrittenStudy], out: Path) -> None:
    """Write a study's results and say where they are."""
    with preflight():
        print("\n".join(f"wrote {path}" for path in write_study(out).files))


def _require_success(progress: Progress, folder: Path, noun: str) -> None:
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


@app.command()
def libero(  # noqa: PLR0913 - one parameter per option
    out: OutOption,
    preset: Annotated[
        LiberoPreset,
        typer.Option(
            "--preset",
            help="small: 4 runs, about an hour on 2 cores; full: 24 runs; tiny: every stage once, as a test.",
        ),
    ] = LiberoPreset.SMALL,
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
        str | None, typer.Option("--tasks", help="Task ids of the suite, like 0,3 or 0-4.", show_default="the preset's")
    ] = None,
    regimes: RegimesOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Recipe of all runs, with env.name libero: a name, or a file with a slash or .yaml.",
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
            "and a policy is cloned from them.",
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every stage and its cost in core minutes; start nothing.")
    ] = False,
) -> None:
    """Collect demonstrations, clone them, improve the policy with RL, and compare before and after."""
    _require_matplotlib()
    from vla_rl.cli.number_lists import parse_tasks
    from vla_rl.studies.jobs import estimate
    from vla_rl.studies.libero.outputs import write_study
    from vla_rl.studies.libero.plan import PRESETS
    from vla_rl.studies.libero.results import says_something
    from vla_rl.studies.libero.runner import run_study
    from vla_rl.studies.libero.stages import jobs_of

    chosen: dict[str, Any] = {"arms": _names(surrogates), "regimes": _names(regimes), "recipe": recipe}
    chosen |= {"tasks": None if tasks is None else tuple(parse_tasks(tasks))}
    chosen |= {"seeds": seeds, "optimizer_steps": budget, "states": states, "init_states": init_states}
    chosen |= {"start": None if start is None else str(start)}
    plan = replace(PRESETS[preset.value], **{name: value for name, value in chosen.items() if value is not None})
    at_once = jobs or len(os.sched_getaffinity(0))
    print(estimate(jobs_of(plan, out), at_once=at_once))
    if dry_run:
        return
    only_comments()
    progress = run_study(plan, out, at_once=at_once, say=partial(print, flush=True))
    if says_something(out):
        _write(write_study, out)
    _require_success(progress, out / "jobs", "jobs")


@app.command()
def groups(  # noqa: PLR0913 - one parameter per option
    out: OutOption,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every stage and its cost in core minutes; start nothing.")
    ] = False,
) -> None:
    """Compare a critic with groups, fresh and on replay, by the episodes that they need for a given success rate."""
    _require_matplotlib()
    from vla_rl.cli.number_lists import parse_tasks
    from vla_rl.studies.grouped.outputs import write_study
    from vla_rl.studies.grouped.plan import PRESET, WINDOW, own_start, starts_named
    from vla_rl.studies.grouped.results import says_something
    from vla_rl.studies.grouped.runner import jobs_of, run_study
    from vla_rl.studies.jobs import estimate

    of_recipe: dict[str, object] = {"--target": target, "--budget": budget, "--window": window, "--tasks": tasks}
    of_recipe |= {"--start": start, "--states": states}
    given = [option for option, value in of_recipe.items() if value is not None]
    if recipe is not None and (starts is not None or target is None or budget is None):
        raise UserError(
            "--recipe: a recipe of your own is its own start, and needs --target and --budget, not --starts"
        )
    if recipe is None and given:
        raise UserError(f"{' and '.join(given)}: only with --recipe; the preset's starts have their own")
    chosen: dict[str, Any] = {"methods": _names(methods), "seeds": seeds, "recipe": recipe}
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
    elif starts is not None:
        chosen["starts"] = starts_named([name.strip() for name in starts.split(",")])
    plan = replace(PRESET, **{name: value for name, value in chosen.items() if value is not None})
    at_once = jobs or len(os.sched_getaffinity(0))
    print(estimate(jobs_of(plan, out), at_once=at_once))
    if dry_run:
        return
    only_comments()
    progress = run_study(plan, out, at_once=at_once, say=partial(print, flush=True))
    if says_something(out):
        _write(write_study, out)
    _require_success(progress, out / "runs", "jobs")


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _require_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed, and the study draws figures with it: pip install 'vla-rl[plots]'")


@app.command()
def gridworld(
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Folder for the results; created if it is missing.")
    ],
) -> None:
    """Compute exact bias and variance of every surrogate on the 2x2 GridWorld: JSON, CSV, table and figures."""
    _require_matplotlib()
    from vla_rl.studies.gridworld.enumeration import study as run_study
    from vla_rl.studies.gridworld.outputs import markdown_table, write_records
    from vla_rl.studies.gridworld.plots import plot_pareto, plot_weights

    only_comments()
    records = run_study()
    written = [*write_records(out, records), *plot_pareto(out, records), *plot_weights(out)]
    print(markdown_table(records))
    print("\n".join(f"wrote {path}" for path in written))
