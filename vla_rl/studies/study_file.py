"""File of a study's settings, `study.json`, and its comparison with the settings of a later call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vla_rl.errors import UserError
from vla_rl.files import read_json_object
from vla_rl.recipe import Recipe, build_recipe

P = TypeVar("P")

STUDY_FILE = "study.json"
KIND = "study"  # field with the kind of the study
METAWORLD = "metaworld"  # kind of a file without this field


def kind_of(folder: Path) -> str:
    """Return the kind of the study in a folder.

    Raises:
        ValueError: `study.json` is missing or broken.
    """
    return str(read_json_object(folder / STUDY_FILE).get(KIND, METAWORLD))


def read_study_file(folder: Path, kind: str) -> dict[str, Any]:
    """Return what the `study.json` of a study of that kind holds.

    Raises:
        ValueError: the folder holds no study or one of another kind, or the file is broken; names it.
    """
    path = folder / STUDY_FILE
    if not path.exists():
        raise ValueError(
            f"{folder}: expected the folder of a study of {kind}, found no {STUDY_FILE} in it; give a folder that "
            f"`vla-rl study {kind}` wrote to"
        )
    values = read_json_object(path)
    found = values.get(KIND, METAWORLD)
    if found != kind:
        raise ValueError(
            f"{path}: expected a study of {kind}, found one of {found}, which `vla-rl report {folder}` shows; choose "
            "another folder"
        )
    return values


def read_settings(out: Path, kind: str, parse: Callable[..., P]) -> tuple[P, str]:
    """Return the plan of a study of that kind, and the recipe (YAML) that it began with.

    Args:
        out: folder of the study.
        kind: kind of the study.
        parse: makes the plan from the settings; takes them and `source`, the file that they are from.

    Raises:
        ValueError: `study.json` is missing, broken, or of another kind; names it.
    """
    path, values = out / STUDY_FILE, read_study_file(out, kind)
    match values:
        case {"plan": dict(plan), "base": str(base)}:
            return parse(plan, source=path), base
    raise ValueError(
        f"{path}: expected a study of {kind} (study, plan, base), found {', '.join(values) or 'nothing'}; restore "
        "the file, or start the study in another folder"
    )


def refuse_another_study(
    out: Path,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    fixed: Iterable[str],
    began_with: str,
    recipe: str,
    base: Recipe,
) -> None:
    """Refuse a call whose runs could not be compared with those of the study in the folder.

    Args:
        out: folder of the study.
        before: its settings.
        after: settings of the call.
        fixed: settings that must be the same.
        began_with: recipe (YAML) that the study began with.
        recipe: name or path of the call's recipe.
        base: the call's recipe.

    Raises:
        UserError: a fixed setting differs, or the recipe has changed since.
    """
    for name in fixed:
        if before[name] != after[name]:
            raise UserError(
                f"--out: {out} holds a study with {name} {before[name]}, and this one has {after[name]}: runs of both "
                "would not be comparable. Choose another folder"
            )
    changed = changed_fields(build_recipe(began_with, source=str(out / STUDY_FILE)), base)
    if changed:
        raise UserError(
            f"--out: the recipe {recipe} has changed since the study in {out} began, in {', '.join(changed)}: "
            "runs of both would not be comparable. Choose another folder"
        )


def changed_fields(before: Recipe, after: Recipe) -> list[str]:
    """Return dotted names of the fields that differ.

    Both recipes are parsed by this version: new fields never differ.
    """
    old, new = before.model_dump(), after.model_dump()
    found: list[str] = []
    for section in sorted(old.keys() | new.keys()):
        ours, theirs = old.get(section), new.get(section)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            fields = sorted(ours.keys() | theirs.keys())
            found += [f"{section}.{name}" for name in fields if ours.get(name) != theirs.get(name)]
        elif ours != theirs:
            found.append(section)
    return found
