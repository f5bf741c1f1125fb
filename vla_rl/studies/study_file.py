"""File of a study's settings, `study.json`, and its comparison with the settings of a later call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
        recipe: name or path of the call's recipe, which counts by its content alone: it may be written otherwise.
        base: the call's recipe.

    Raises:
        UserError: a fixed setting differs, or the recipe says something else.
    """
    names = list(fixed)
    found = differences(
        SharedByRuns({name: before[name] for name in names}, build_recipe(began_with, source=str(out / STUDY_FILE))),
        SharedByRuns({name: after[name] for name in names}, base),
    )
    for name, (ours, theirs) in found.settings.items():
        raise UserError(
            f"--out: {out} holds a study with {name} {ours}, and this one has {theirs}: runs of both would not be "
            "comparable. Choose another folder"
        )
    if found.fields:
        raise UserError(
            f"--out: the study in {out} began with another recipe than {recipe} is now; they differ in "
            f"{', '.join(found.fields)}: runs of both would not be comparable. Choose another folder"
        )


@dataclass(frozen=True, slots=True)
class SharedByRuns:
    """Settings and recipe that all runs of a study share."""

    settings: Mapping[str, Any]
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Differences:
    """Reasons for which the runs of two studies cannot be compared; both are empty if there is none."""

    settings: Mapping[str, tuple[Any, Any]]  # values of the first and the second, by name
    fields: Sequence[str]  # of the recipe, dotted


def differences(first: SharedByRuns, second: SharedByRuns) -> Differences:
    """Return the settings and the fields of the recipe in which two studies differ.

    Both recipes are parsed by this version: new fields never differ.
    """
    pairs = {name: (value, second.settings[name]) for name, value in first.settings.items()}
    return Differences(
        {name: pair for name, pair in pairs.items() if pair[0] != pair[1]},
        _changed_fields(first.recipe.model_dump(), second.recipe.model_dump()),
    )


def _changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for section in sorted(old.keys() | new.keys()):
        ours, theirs = old.get(section), new.get(section)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            fields = sorted(ours.keys() | theirs.keys())
            found += [f"{section}.{name}" for name in fields if ours.get(name) != theirs.get(name)]
        elif ours != theirs:
            found.append(section)
    return found
