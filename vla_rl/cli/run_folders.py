"""Recipes and folders of runs on the command line: options of every stage of training, mistakes, and the run itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.resources.abc import Traversable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

from vla_rl.cli import exit_codes
from vla_rl.cli.commentary import only_comments
from vla_rl.errors import UserError
from vla_rl.learner.launch import launched_rank

if TYPE_CHECKING:
    from vla_rl.learner.notice_board import NoticeBoard


class HasEnded(Protocol):
    """Outcome of a run."""

    @property
    def interrupted(self) -> bool:
        """Return whether it was asked to end before its time."""
        ...


Loaded = TypeVar("Loaded")
Outcome = TypeVar("Outcome", bound=HasEnded)

RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="Name in `vla-rl recipes list`, or path of a file, with a slash or .yaml at its end; with --resume also "
        "the folder of a run, like runs/toy."
    ),
]
RunDirOption = Annotated[Path | None, typer.Option("--run-dir", help="Folder of the run.", show_default="runs/NAME")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Resume from the run's latest checkpoint.")]


def carry_out(
    read: Callable[[], tuple[Loaded, Path]],
    run: Callable[[Loaded, Path, NoticeBoard | None], Outcome | None],
    summary: Callable[[Outcome], str],
) -> None:
    """Read a recipe and run it, alone or as one of several ranks, and print how it ended.

    Args:
        read: returns the recipe with its overrides, and the folder of the run.
        run: runs it; returns the outcome on rank 0, None elsewhere.
        summary: of the outcome, for people.

    Raises:
        Exit: with the code of an interruption, if the run was interrupted.
    """
    from vla_rl.run.ranks import ranks_together

    with ranks_together() as board:
        loaded, run_dir = read()
        only_comments()
        outcome = run(loaded, run_dir, board)
    if outcome is None:  # rank 0 reports it
        return
    print(summary(outcome))
    if outcome.interrupted and launched_rank() is None:  # a failure code would make the launcher kill the other ranks
        raise typer.Exit(exit_codes.INTERRUPTED)


def find_file(recipe: str, *, verb: str, resume: bool) -> tuple[Traversable, Path | None]:
    """Return the file of a recipe, and the folder of its run if a run was given to be resumed.

    Raises:
        UserError: there is none, or it is one of another verb.
    """
    from vla_rl.recipe import find_recipe

    folder = run_folder(recipe, resume=resume)
    file = find_recipe(recipe) if folder is None else folder / "recipe.yaml"
    refuse_another_verb(file, recipe, verb=verb, resume=resume)
    return file, folder


def choose_run_dir(recipe: str, name: str, run_dir: Path | None, folder: Path | None, *, resume: bool) -> Path:
    """Return the folder of the run.

    Args:
        recipe: as it was written on the command line.
        name: the recipe's.
        run_dir: option of that name.
        folder: of a run that was given in place of a recipe.
        resume: option of that name.

    Raises:
        UserError: as `refuse_another_run`.
    """
    chosen = run_dir or folder or Path("runs") / name
    if resume and folder is None:
        refuse_another_run(recipe, chosen)
    return chosen


def run_folder(recipe: str, *, resume: bool) -> Path | None:
    """Return the folder of the run to resume; None if a recipe was given.

    Raises:
        UserError: a folder without --resume, or one without a run, or --resume with neither a run nor a recipe.
    """
    from vla_rl.recipe import find_recipe, is_path

    folder = Path(recipe)
    if not is_path(recipe) or not os.path.isdir(recipe):  # noqa: PTH112 - Path.is_dir raises for a path that is too long
        try:
            find_recipe(recipe)
        except UserError as error:
            if not resume or not is_path(recipe):
                raise
            raise UserError(
                f"--resume: {recipe} is neither the folder of a run nor a recipe. {_runs_beside(folder)} "
                "`vla-rl recipes list` names the recipes"
            ) from error
        return None
    if not resume:
        raise UserError(f"{recipe} is a folder: give a recipe, or add --resume to resume the run in it")
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"--resume: {folder} holds no run, because it has no recipe.yaml. {_runs_beside(folder)}")
    return folder


def refuse_another_run(recipe: str, run_dir: Path) -> None:
    """Refuse a recipe's name that matches the folder of a run here: a name means the recipe.

    Raises:
        UserError: there is such a run here, and none in the recipe's default folder.
    """
    here = Path(recipe)
    if (here / "recipe.yaml").is_file() and not (run_dir / "recipe.yaml").is_file():
        raise UserError(
            f"--resume: {recipe} is the name of a recipe, and there is no run of it in {run_dir}. "
            f"To resume the run in the folder {recipe} here, write ./{recipe}"
        )


def refuse_another_verb(file: Traversable, recipe: str, *, verb: str, resume: bool) -> None:
    """Refuse the recipe of another stage of training, whose sections would all be unknown keys.

    Args:
        file: of the recipe.
        recipe: as it was written on the command line.
        verb: train or sft, the one that was called.
        resume: option of that name.

    Raises:
        UserError: it is a recipe of the other verb.
    """
    from vla_rl.recipe import is_supervised

    other = "sft" if is_supervised(file) else "train"
    if other != verb:
        what = "the supervised stage: it names demonstrations" if other == "sft" else "reinforcement learning"
        option = " --resume" if resume else ""
        raise UserError(f"{recipe}: a recipe of {what}. Use `vla-rl {other} {quote(recipe)}{option}`")


def _runs_beside(folder: Path) -> str:
    runs = sorted(str(file.parent) for file in folder.parent.glob("*/recipe.yaml"))
    return f"Runs beside it: {', '.join(runs) or 'none'}."
