"""File of a study's settings, `study.json`, and its comparison with the settings of a later call."""

from __future__ import annotations

from pathlib import Path

from vla_rl.files import read_json_object
from vla_rl.recipe import Recipe

STUDY_FILE = "study.json"
KIND = "study"  # field with the kind of the study
METAWORLD = "metaworld"  # kind of a file without this field


def kind_of(folder: Path) -> str:
    """Return the kind of the study in a folder.

    Raises:
        ValueError: `study.json` is missing or broken.
    """
    return str(read_json_object(folder / STUDY_FILE).get(KIND, METAWORLD))


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
