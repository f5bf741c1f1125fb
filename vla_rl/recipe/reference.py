"""Keys of a recipe, read from the models, for people who write recipes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vla_rl.recipe.model import Recipe
from vla_rl.recipe.shape import SectionType, field_sections, kind_name
from vla_rl.recipe.translate import number
from vla_rl.section import LARGEST_COUNT

_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_LARGEST = float(LARGEST_COUNT)  # this and larger limits only keep counters from overflowing and are not shown
_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True, slots=True)
class FieldReference:
    """One key of a recipe."""

    path: str  # dotted
    kind: str  # of the section, if there is a choice ("gipo"); otherwise empty
    allowed: str
    default: str  # in YAML; "required" if there is none
    description: str


def field_references(root: SectionType = Recipe) -> list[FieldReference]:
    """Return every key that holds a value, in the order of the models."""
    return list(_of_section(root, ""))


def _of_section(section: SectionType, prefix: str) -> Iterator[FieldReference]:
    schema = section.model_json_schema()
    for key, entry in schema["properties"].items():
        inner = field_sections(section, key)
        for member in inner:
            yield from _of_section(member, f"{prefix}{key}.")
        if not inner:
            yield FieldReference(
                path=f"{prefix}{key}",
                kind=kind_name(section) or "",
                allowed=_in_words(entry),
                default="required" if key in schema.get("required", ()) else _as_yaml(entry.get("default")),
                description=entry.get("description", ""),
            )


def _in_words(entry: dict[str, Any]) -> str:
    if "const" in entry:
        return str(entry["const"])
    if "enum" in entry:
        return ", ".join(map(str, entry["enum"]))
    if "anyOf" in entry:
        return " or ".join(_in_words(member) for member in entry["anyOf"])
    if entry["type"] == "array":
        return f"list of: {_in_words(entry['items'])}"
    limits = {sign: entry[limit] for limit, sign in _LIMITS.items() if entry.get(limit, _LARGEST) < _LARGEST}
    written = ", ".join(f"{sign} {number(limit)}" for sign, limit in limits.items())
    return f"{_TYPES[entry['type']]} {written}".rstrip()


def _as_yaml(value: Any) -> str:  # noqa: ANN401 - a default of any field
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value) or "''"
