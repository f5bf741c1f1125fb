"""Where recipes are found: those that come with the program by their name, those of the user by a path.

A text with a slash, or one that ends in .yaml, is a path; any other is a name. What lies in the current directory never
changes what a name means.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from vla_rl.errors import UserError

_SUFFIX = ".yaml"


def list_recipes() -> dict[str, Traversable]:
    """The recipes that come with the program, sorted by name."""
    files = [file for file in _shipped_folder().iterdir() if file.name.endswith(_SUFFIX)]
    return {file.name.removesuffix(_SUFFIX): file for file in sorted(files, key=lambda file: file.name)}


def _shipped_folder() -> Traversable:
    """Inside the package of an installation, which may be a zip file; beside the package in a clone."""
    packaged = resources.files("vla_rl") / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def is_path(text: str) -> bool:
    """Whether a text names a file or a folder, and not something that comes with the program."""
    return "/" in text or text in (".", "..") or text.endswith((_SUFFIX, ".yml"))


def find_recipe(name_or_path: str) -> Traversable:
    """The file of a recipe.

    Raises:
        UserError: no recipe has that name, or the path is that of a folder or of nothing.
    """
    shipped = list_recipes()
    if not is_path(name_or_path):
        if name_or_path not in shipped:
            raise UserError(_unknown_name(name_or_path, list(shipped)))
        return shipped[name_or_path]
    path = Path(name_or_path)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise UserError(f"recipe '{name_or_path}': no such file{_meant(path.stem, list(shipped))}") from None
    except OSError as error:  # also a path that is too long
        raise UserError(f"recipe '{name_or_path}': {error.strerror}") from error
    if is_folder:
        raise UserError(f"recipe '{name_or_path}': it is a folder{_of_a_run(path)}; give the file of a recipe")
    return path


def _unknown_name(name: str, shipped: Sequence[str]) -> str:
    known = f"recipe '{name}': none of that name comes with the program; known names: {', '.join(shipped)}"
    if name in (entry.name for entry in Path().iterdir()):
        return f"{known}; for the {'folder' if Path(name).is_dir() else 'file'} of that name here write ./{name}"
    return known + _meant(name, shipped)


def _of_a_run(folder: Path) -> str:
    recorded = folder / "recipe.yaml"
    return f" of a run, whose recipe is {recorded}" if recorded.is_file() else ""


def _meant(name: str, shipped: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, shipped, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
