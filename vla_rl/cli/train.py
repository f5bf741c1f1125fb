"""`vla-rl train`: a recipe, overrides, go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_rl.cli import exit_codes
from vla_rl.errors import UserError, preflight

if TYPE_CHECKING:
    from vla_rl.train import TrainOutcome


def train(
    recipe: Annotated[
        str, typer.Argument(help="A file, a name of `vla-rl recipes list`, or with --resume the folder of a run.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]", help="Fields of the recipe, like surrogate.name=ppo.", show_default=False
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Where the run writes.", show_default="runs/NAME")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's latest checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, estimate memory, start nothing, write nothing.")
    ] = False,
) -> None:
    """Train a policy as a recipe says."""
    from vla_rl.recipe import load_recipe

    loaded = load_recipe(_recipe_file(recipe, resume=resume), overrides or ())
    if run_dir is None:
        run_dir = Path(recipe) if Path(recipe).is_dir() else Path("runs") / loaded.name

    from rich.console import Console

    from vla_rl import train as training
    from vla_rl.learner.launch import launched_rank

    if dry_run:
        with preflight():
            report = training.dry_run(loaded)
        print(report)
        return
    outcome = training.train(loaded, run_dir=run_dir, resume=resume, console=Console())
    if outcome is None:  # rank 0 says it
        return
    print(_summary(outcome))
    if outcome.interrupted and launched_rank() is None:  # a launched rank's failure would have the others killed
        raise typer.Exit(exit_codes.INTERRUPTED)


def _recipe_file(recipe: str, *, resume: bool) -> Path:
    """The file of a recipe, or of the run in a folder.

    Raises:
        UserError: there is none.
    """
    from vla_rl.recipe import find_recipe

    folder = Path(recipe)
    if not folder.is_dir():
        try:
            return find_recipe(recipe)
        except UserError:
            if not resume:
                raise
            raise UserError(
                f"--resume: {folder} is neither the folder of a run nor a recipe. {_runs_beside(folder)} "
                "`vla-rl recipes list` names the recipes"
            ) from None
    if not resume:
        raise UserError(f"{recipe} is a folder: give a recipe, or --resume to go on with the run in it")
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"--resume: {folder} holds no run, because it has no recipe.yaml. {_runs_beside(folder)}")
    return folder / "recipe.yaml"


def _runs_beside(folder: Path) -> str:
    runs = sorted(str(file.parent) for file in folder.parent.glob("*/recipe.yaml"))
    return f"Runs beside it: {', '.join(runs) or 'none'}."


def _summary(outcome: TrainOutcome) -> str:
    clocks = outcome.clocks
    lines = [] if outcome.evaluation is None else [str(outcome.evaluation)]
    lines += [
        f"{'interrupted' if outcome.interrupted else 'finished'} after {clocks.optimizer_steps} optimizer steps, "
        f"{clocks.episodes} episodes, {clocks.env_steps} environment steps",
        f"run         {outcome.run_dir}",
        f"checkpoint  {outcome.checkpoint}",
    ]
    if outcome.interrupted:
        lines.append(f"go on with  vla-rl train {outcome.run_dir} --resume")
    return "\n".join(lines)
