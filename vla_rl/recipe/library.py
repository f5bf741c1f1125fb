"""Where recipes are found: files named by a path, and those that come with the program, named by their name."""

from __future__ import annotations

import difflib
from importlib import metadata
from pathlib import Path

from vla_rl.errors import UserError

_SUFFIX = ".yaml"
_INSTALLED = "vla-rl/recipes/"  # the end of the folder that a wheel puts them in


def _shipped_files() -> dict[str, Path]:
    """Name to file of the recipes that come with the program: the clone's folder, or the copy in an installation."""
    folder = Path(__file__).parents[2] / "recipes"
    if folder.is_dir():
        return {str(file.relative_to(folder).with_suffix("")): file for file in folder.rglob(f"*{_SUFFIX}")}
    files = metadata.distribution("vla-rl").files or []
    shipped = [file for file in files if _INSTALLED in file.as_posix() and file.suffix == _SUFFIX]
    located = [(file.as_posix().split(_INSTALLED)[1], Path(file.locate())) for file in shipped]
    return {name.removesuffix(_SUFFIX): path.resolve() for name, path in located}


def list_recipes() -> dict[str, Path]:
    """The recipes that come with the program, sorted by name."""
    return dict(sorted(_shipped_files().items()))


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe: a path to a file, or the name of one that comes with the program.

    Raises:
        UserError: neither a file nor a known name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = list_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    close = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UserError(f"recipe '{name_or_path}': no such file or name; known names: {', '.join(shipped)}{hint}")
