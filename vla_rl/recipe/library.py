"""Search for recipes: those that come with the program by name, those of the user by path.

A text with a slash, or one that ends in .yaml, is a path; any other is a name. The content of the current directory
never changes the meaning of a name.

Beside the recipes are bases: files that are not recipes on their own and that a recipe names with `base: NAME`.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from shlex import quote

from vla_rl.errors import UserError

_SUFFIX = ".yaml"
_BASES = "bases"
_LARGEST_BYTES = 200_000  # a recipe with every field has 4,000; parsing a far larger file would take minutes


def list_recipes() -> dict[str, Traversable]:
    """Return the recipes that come with the program, sorted by name."""
    return _by_name(_shipped_folder())


def list_bases() -> dict[str, Traversable]:
    """Return the bases that come with the program, sorted by name: no recipes by themselves."""
    return _by_name(_shipped_folder() / _BASES)


def _by_name(folder: Traversable) -> dict[str, Traversable]:
    files = [file for file in folder.iterdir() if file.name.endswith(_SUFFIX)]
    return {file.name.removesuffix(_SUFFIX): file for file in sorted(files, key=lambda file: file.name)}


def _shipped_folder() -> Traversable:
    """Return the folder of recipes: inside an installed package, which may be a zip file, or beside it in a clone."""
    packaged = resources.files("vla_rl") / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def is_path(text: str) -> bool:
    """Return whether a text names a file or a folder, rather than something that comes with the program."""
    return "/" in text or text in (".", "..") or text.endswith((_SUFFIX, ".yml"))


def find_recipe(name_or_path: str) -> Traversable:
    """Find the file of a recipe.

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


def find_base(written: str, *, folder: Path) -> Traversable:
    """Find the file that a recipe names as its base.

    Args:
        written: the name of a base or recipe that comes with the program, or a path.
        folder: that a path starts from, where it is relative: the recipe's own.

    Raises:
        UserError: there is no such base; the message says what there is.
    """
    known = list_bases() | list_recipes()
    if not is_path(written):
        if written not in known:
            names = f"known names: {', '.join(known)}"
            raise UserError(f"none of that name comes with the program; {names}{_meant(written, list(known))}")
        return known[written]
    path = folder / written
    try:
        is_file = not stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:  # also a path that is too long
        raise UserError(f"{path}: {error.strerror}{_meant(path.stem, list(known))}") from None
    if not is_file:
        raise UserError(f"{path} is a folder{_of_a_run(path)}; give a file")
    return path


def read_text(path: Traversable) -> str:
    """Read the file of a recipe or of a base.

    Raises:
        UserError: it cannot be read, is no UTF-8, or is too large to be a recipe.
    """
    try:
        with path.open("rb") as file:  # of a pipe too, which has no size
            content = file.read(_LARGEST_BYTES + 1)
        text = content[:_LARGEST_BYTES].decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"recipe {path}: not UTF-8 text ({error.reason} at byte {error.start}); if it is a recipe, save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"recipe {path}: cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_BYTES:
        raise UserError(f"recipe {path}: larger than {_LARGEST_BYTES} bytes, so it is no recipe; is it another file?")
    return text


def _unknown_name(name: str, shipped: Sequence[str]) -> str:
    if name in list_bases():
        return (
            f"recipe '{name}': it is a base, which is no recipe by itself: write a file with `base: {name}`, or take a "
            f"recipe that comes with the program: {', '.join(shipped)}"
        )
    known = f"recipe '{name}': none of that name comes with the program; known names: {', '.join(shipped)}"
    if name in (entry.name for entry in Path().iterdir()):
        kind = "folder" if Path(name).is_dir() else "file"
        return f"{known}; for the {kind} of that name here write {quote('./' + name)}"
    return known + _meant(name, shipped)


def _of_a_run(folder: Path) -> str:
    recorded = folder / "recipe.yaml"
    return f" of a run, whose recipe is {recorded}" if recorded.is_file() else ""


def _meant(name: str, shipped: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, shipped, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
