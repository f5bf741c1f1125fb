"""`vla-rl sft`: train a policy on demonstrations with a recipe and overrides."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from vla_rl.cli.run_folders import RecipeArgument, ResumeOption, RunDirOption, carry_out, choose_run_dir, find_file
from vla_rl.errors import preflight

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

        loaded, folder = _read(recipe, overrides or [], run_dir, resume=resume)
        with preflight():
            report = stage.dry_run(loaded, run_dir=folder, resume=resume)
        print(report)
        return
    carry_out(
        partial(_read, recipe, overrides or [], run_dir, resume=resume), partial(_supervise, resume=resume), _summary
    )


def _supervise(
    loaded: SupervisedRecipe, run_dir: Path, board: NoticeBoard | None, *, resume: bool
) -> SupervisedOutcome | None:
    from rich.console import Console

    from vla_rl.sft import stage

    return stage.supervise(loaded, run_dir=run_dir, resume=resume, console=Console(), board=board)


def _read(recipe: str, overrides: list[str], run_dir: Path | None, *, resume: bool) -> tuple[SupervisedRecipe, Path]:
    """Return the recipe with its overrides, and the folder of the run."""
    from vla_rl.recipe import load_supervised_recipe
    from vla_rl.reporting.run_folder import started_in

    file, folder = find_file(recipe, verb="sft", resume=resume)
    loaded = load_supervised_recipe(file, overrides, runs_here=True)
    run_dir = choose_run_dir(recipe, loaded.name, run_dir, folder, resume=resume)
    if resume and (run_dir / "recipe.yaml").is_file():
        with preflight():
            loaded = loaded.found_from(started_in(run_dir))
    return loaded, run_dir


def _summary(outcome: SupervisedOutcome) -> str:
    from vla_rl.reporting.run_folder import as_argument

    lines = [] if outcome.evaluation is None else [str(outcome.evaluation)]
    lines += [
        f"{'interrupted' if outcome.interrupted else 'finished'} after {outcome.optimizer_steps} optimizer steps",
        *([f"ended early: {outcome.reason}"] if outcome.reason else []),
        f"run         {outcome.run_dir}",
        f"checkpoint  {outcome.checkpoint}",
    ]
    if outcome.policy is not None:
        policy = quote(str(outcome.policy))
        lines += [
            f"policy      {outcome.policy}",
            f"continue with  vla-rl train RECIPE policy.checkpoint={policy}, or vla-rl eval {policy}",
        ]
    elif outcome.interrupted:
        lines.append(f"continue with  vla-rl sft {as_argument(outcome.run_dir)} --resume")
    return "\n".join(lines)
