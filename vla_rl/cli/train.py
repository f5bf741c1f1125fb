"""`vla-rl train`: train with a recipe and overrides."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_rl.cli.run_folders import RecipeArgument, ResumeOption, RunDirOption, carry_out, choose_run_dir, find_file
from vla_rl.errors import preflight
from vla_rl.learner.launch import launched_rank

if TYPE_CHECKING:
    from vla_rl.learner.notice_board import NoticeBoard
    from vla_rl.recipe import Recipe
    from vla_rl.train import TrainOutcome


def train(
    recipe: RecipeArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Fields of the recipe to set, like surrogate.name=ppo.", show_default=False
        ),
    ] = None,
    run_dir: RunDirOption = None,
    resume: ResumeOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, estimate memory, start nothing, write nothing.")
    ] = False,
) -> None:
    """Train a policy with a recipe."""
    if dry_run:
        from vla_rl import train as training

        loaded, folder = _read(recipe, overrides or [], run_dir, resume=resume)
        with preflight():
            report = training.dry_run(loaded, run_dir=folder, resume=resume)
        print(report)
        return
    carry_out(partial(_read, recipe, overrides or [], run_dir, resume=resume), partial(_train, resume=resume), _summary)


def _train(loaded: Recipe, run_dir: Path, board: NoticeBoard | None, *, resume: bool) -> TrainOutcome | None:
    from rich.console import Console

    from vla_rl import train as training

    return training.train(loaded, run_dir=run_dir, resume=resume, console=Console(), board=board)


def _read(recipe: str, overrides: list[str], run_dir: Path | None, *, resume: bool) -> tuple[Recipe, Path]:
    """Return the recipe with its overrides, and the folder of the run."""
    from vla_rl.recipe import load_recipe
    from vla_rl.reporting.run_folder import started_in

    file, folder = find_file(recipe, verb="train", resume=resume)
    loaded = load_recipe(file, overrides, runs_here=True)
    run_dir = choose_run_dir(recipe, loaded.name, run_dir, folder, resume=resume)
    if resume and (run_dir / "recipe.yaml").is_file():
        with preflight():
            loaded = loaded.found_from(started_in(run_dir))
        loaded = _with_the_run_s_time_limit(loaded, run_dir, overrides)
    elif isinstance(file, Path):
        _compare_with_older_run(loaded, file, overrides)
    return loaded, run_dir


def _with_the_run_s_time_limit(loaded: Recipe, run_dir: Path, overrides: list[str]) -> Recipe:
    """Return the recipe with the meaning of the horizon that the run began with, unless an override changes it.

    Targets that changed their meaning during a run would mislead the critic, so another recipe or a default never
    changes them.
    """
    from vla_rl.recipe import EARLIER_TIME_LIMIT, recorded_time_limit

    if _sets_time_limit(overrides) or not loaded.targets.needs_values:  # without a critic there is no choice
        return loaded
    recorded = recorded_time_limit(run_dir / "recipe.yaml")
    kept = recorded or EARLIER_TIME_LIMIT
    is_told = recorded is None or loaded.targets.time_limit != kept
    if is_told and launched_rank() is None:  # other ranks need not repeat it
        age = ": it is older than this field" if recorded is None else ""
        print(f"{run_dir} continues with targets.time_limit={kept}, as it began{age}")
    return loaded.model_copy(update={"targets": loaded.targets.model_copy(update={"time_limit": kept})})


def _compare_with_older_run(loaded: Recipe, file: Path, overrides: list[str]) -> None:
    """Say it where a run's `recipe.yaml` is older than `targets.time_limit`, so that it no longer trains the same."""
    from vla_rl.recipe import EARLIER_TIME_LIMIT, recorded_time_limit
    from vla_rl.reporting.manifest import MANIFEST_FILE

    is_of_run = file.name == "recipe.yaml" and (file.parent / MANIFEST_FILE).is_file()
    used = loaded.targets.time_limit
    if not is_of_run or used == EARLIER_TIME_LIMIT or _sets_time_limit(overrides) or launched_rank() is not None:
        return
    if recorded_time_limit(file) is None:
        print(
            f"{file} is older than targets.time_limit: its run used {EARLIER_TIME_LIMIT}, this one uses {used}. "
            f"For the same as before add targets.time_limit={EARLIER_TIME_LIMIT}"
        )


def _sets_time_limit(overrides: list[str]) -> bool:
    return any(text.partition("=")[0] in ("targets", "targets.time_limit") for text in overrides)


def _summary(outcome: TrainOutcome) -> str:
    from vla_rl.reporting.run_folder import as_argument

    clocks, told = outcome.clocks, outcome.spent and not outcome.reason and not outcome.interrupted
    lines = [] if outcome.evaluation is None else [str(outcome.evaluation)]
    lines += [
        f"{'interrupted' if outcome.interrupted else 'finished'} after {clocks.optimizer_steps} optimizer steps, "
        f"{clocks.episodes} episodes, {clocks.env_steps} env steps",
        *([f"ended early: {outcome.reason}"] if outcome.reason else []),
        *([f"budget      {outcome.spent} is spent: resume with more to go on"] if told else []),
        f"run         {outcome.run_dir}",
        f"checkpoint  {outcome.checkpoint}",
    ]
    if outcome.interrupted:
        lines.append(f"continue with  vla-rl train {as_argument(outcome.run_dir)} --resume")
    return "\n".join(lines)
