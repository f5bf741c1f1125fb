"""`vla-rl sft`: train a policy on demonstrations with a recipe and overrides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_rl.cli import exit_codes
from vla_rl.cli.commentary import only_comments
from vla_rl.cli.run_folders import (
    RecipeArgument,
    ResumeOption,
    RunDirOption,
    refuse_another_run,
    refuse_another_verb,
    run_folder,
)
from vla_rl.errors import preflight
from vla_rl.learner.launch import launched_rank

if TYPE_CHECKING:
    from vla_rl.learner.notice_board import NoticeBoard
    from vla_rl.recipe import SupervisedRecipe
    from vla_rl.sft.stage import SupervisedOutcome


def sft(
    recipe: RecipeArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Fields of the recipe to set, like demos.path=demos.", show_default=False
        ),
    ] = None,
    run_dir: RunDirOption = None,
    resume: ResumeOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check recipe and data, estimate memory and disk, start nothing, write nothing."
        ),
    ] = False,
) -> None:
    """Train a policy on demonstrations with a recipe (supervised fine-tuning)."""
    if dry_run:
        from vla_rl.sft import stage

        loaded, _ = _read(recipe, overrides or [], run_dir, resume=resume)
        with preflight():
            report = stage.dry_run(loaded)
        print(report)
        return
    from vla_rl.run.ranks import ranks_together

    with ranks_together() as board:
        loaded, run_dir = _read(recipe, overrides or [], run_dir, resume=resume)
        outcome = _supervise(loaded, run_dir, resume=resume, board=board)
    if outcome is None:  # rank 0 reports it
        return
    print(_summary(outcome))
    if outcome.interrupted and launched_rank() is None:  # a failure code would make the launcher kill the other ranks
        raise typer.Exit(exit_codes.INTERRUPTED)


def _supervise(
    loaded: SupervisedRecipe, run_dir: Path, *, resume: bool, board: NoticeBoard | None
) -> SupervisedOutcome | None:
    from rich.console import Console

    from vla_rl.sft import stage

    only_comments()
    return stage.supervise(loaded, run_dir=run_dir, resume=resume, console=Console(), board=board)


def _read(recipe: str, overrides: list[str], run_dir: Path | None, *, resume: bool) -> tuple[SupervisedRecipe, Path]:
    """Return the recipe with its overrides, and the folder of the run."""
    from vla_rl.recipe import find_recipe, load_supervised_recipe

    folder = run_folder(recipe, resume=resume)
    file = find_recipe(recipe) if folder is None else folder / "recipe.yaml"
    refuse_another_verb(file, recipe, verb="sft")
    loaded = load_supervised_recipe(file, overrides, runs_here=True)
    if run_dir is None:
        run_dir = folder or Path("runs") / loaded.name
    if resume and folder is None:
        refuse_another_run(recipe, run_dir)
    return loaded, run_dir


def _summary(outcome: SupervisedOutcome) -> str:
    lines = [] if outcome.evaluation is None else [str(outcome.evaluation)]
    lines += [
        f"{'interrupted' if outcome.interrupted else 'finished'} after {outcome.optimizer_steps} optimizer steps",
        f"run         {outcome.run_dir}",
        f"checkpoint  {outcome.checkpoint}",
    ]
    if outcome.policy is not None:
        lines += [
            f"policy      {outcome.policy}",
            f"continue with  vla-rl train RECIPE policy.checkpoint={outcome.policy}, or vla-rl eval {outcome.policy}",
        ]
    elif outcome.interrupted:
        lines.append(f"continue with  vla-rl sft {outcome.run_dir} --resume")
    return "\n".join(lines)
