"""Structure of the models, read from the models: kinds of a section, fields, and the places of a name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from vla_rl.recipe.model import Recipe
from vla_rl.section import Section

SectionType = type[Section]


def sections_of(annotation: Any) -> list[SectionType]:  # noqa: ANN401 - a type annotation has no narrower type
    """Return the section models inside an annotation, through `Annotated` and unions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    origin = get_origin(annotation)
    if origin is Annotated:
        return sections_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [section for member in get_args(annotation) for section in sections_of(member)]
    return []


def kind_name(section: SectionType) -> str | None:
    """Return the literal `name` that marks a kind in a union, None for a section with one kind."""
    field = section.model_fields.get("name")
    names = get_args(field.annotation) if field else ()
    return str(names[0]) if names else None


def field_names(section: SectionType) -> list[str]:
    """Return the keys of a section as they are written."""
    return [field.alias or name for name, field in section.model_fields.items()]


def field_sections(section: SectionType, key: str) -> list[SectionType]:
    """Return the section models that may be at `key`; empty for a plain field and for an unknown key."""
    for name, field in section.model_fields.items():
        if key == (field.alias or name):
            return sections_of(field.annotation)
    return []


def kinds(path: tuple[str, ...], root: SectionType = Recipe) -> dict[str, SectionType]:
    """Return the kinds to choose from at a path, by name; empty if there is no choice."""
    sections: list[SectionType] = [root]
    for key in path:
        sections = [inner for section in sections for inner in field_sections(section, key)]
    return {name: section for section in sections if (name := kind_name(section)) is not None}


@cache
def homes(root: SectionType = Recipe) -> dict[str, list[str]]:
    """Return every key of every section, with the dotted paths at which it exists."""
    found: dict[str, list[str]] = {}
    for path, key in _walk(root, ""):
        paths = found.setdefault(key, [])
        if path not in paths:
            paths.append(path)
    return found


def _walk(section: SectionType, prefix: str) -> Iterator[tuple[str, str]]:
    for key in field_names(section):
        yield f"{prefix}{key}", key
        for inner in field_sections(section, key):
            yield from _walk(inner, f"{prefix}{key}.")
