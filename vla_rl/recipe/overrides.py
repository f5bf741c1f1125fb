"""Overrides from the command line: `key.sub=value`, the value in YAML.

An override of a `name` that chooses between kinds of a section (`surrogate.name=ppo`) is applied before the others.
Fields that only the previous kind has (`surrogate.sigma`) are dropped; common ones stay; a field that an override sets
is never dropped, so that setting a field of the wrong kind is an error. `targets.time_limit` states the meaning of the
horizon for the environment's task: with another environment, the default of the previous one is dropped as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_rl.recipe.completion import usual_time_limit
from vla_rl.recipe.dialect import Path, YamlError, parse
from vla_rl.recipe.model import Recipe
from vla_rl.recipe.shape import SectionType, field_names, kinds
from vla_rl.section import Problem, TimeLimit


@dataclass(frozen=True, slots=True)
class Override:
    """One assignment."""

    path: tuple[str, ...]
    value: Any
    text: str  # as it was written


def parse_overrides(texts: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """Read `key.sub=value` texts; unreadable ones are returned as problems."""
    overrides: list[Override] = []
    problems: list[Problem] = []
    for text in texts:
        key, separator, value = text.partition("=")
        path = tuple(key.split("."))
        if not separator or not all(path):
            problems.append(Problem(key, "an override has the form key.sub=value", found=text))
            continue
        try:
            document = parse(value)
        except YamlError as error:
            problems.append(Problem(key, f"the value is not YAML: {error}", found=value, place=text))
            continue
        twice = [".".join((*path, *map(str, inner))) for inner, _, _ in document.repeated]
        problems += [Problem(name, "this key stands twice", place=text) for name in twice]
        for inner, _, written in document.odd_keys:
            name = ".".join((*path, *map(str, inner)))
            problems.append(Problem(name, "a key must be text", found=written, place=text))
        overrides.append(Override(path=path, value=document.data, text=text))
    return overrides, problems


def apply_overrides(data: dict[str, Any], overrides: Sequence[Override], root: SectionType = Recipe) -> list[Problem]:
    """Change `data`, the values of a `root`, in place; overrides without a place are returned as problems."""
    usual = usual_time_limit(data.get("env"))
    choices = [override for override in overrides if _chooses_kind(override, root)]
    for override in choices:
        _drop_former_kind(data, override, root)
    problems = [_assign(data, override, root) for override in choices]
    problems += [_assign(data, override, root) for override in overrides if override not in choices]
    if usual_time_limit(data.get("env")) != usual:
        _drop_time_limit(data, usual, overrides)
    return [problem for problem in problems if problem is not None]


def lay_over(
    data: dict[str, Any], changes: Mapping[Any, Any], lines: Mapping[Path, int], root: SectionType = Recipe
) -> list[Problem]:
    """Apply a file's values to `data` in place, each as an override.

    Args:
        data: values of the base.
        changes: values of the file.
        lines: lines of the file's keys.
        root: model of the whole file.
    """
    return apply_overrides(data, list(_flattened(changes, (), data, lines)), root)


def _flattened(
    changes: Mapping[Any, Any], path: tuple[str, ...], there: object, lines: Mapping[Path, int]
) -> Iterator[Override]:
    """Yield the values of nested mappings; the reader of the file reports keys that are not text."""
    for key, value in changes.items():
        if not isinstance(key, str):
            continue
        inner, below = (*path, key), there.get(key) if isinstance(there, Mapping) else None
        is_section = isinstance(below, Mapping) or (below is None and bool(value))
        if isinstance(value, Mapping) and is_section:  # an empty one changes nothing
            yield from _flattened(value, inner, below, lines)
        else:
            yield Override(path=inner, value=value, text=f"line {lines[inner]}")


def _chooses_kind(override: Override, root: SectionType) -> bool:
    return override.path[-1] == "name" and len(override.path) > 1 and bool(kinds(override.path[:-1], root))


def _drop_former_kind(data: dict[str, Any], override: Override, root: SectionType) -> None:
    """Remove the keys that the previous kind has and the new one does not."""
    known = kinds(override.path[:-1], root)
    section: Any = data
    for key in override.path[:-1]:
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        return
    former, chosen = section.get("name"), override.value
    if not isinstance(former, str) or not isinstance(chosen, str) or former not in known or chosen not in known:
        return
    for key in set(field_names(known[former])) - set(field_names(known[chosen])):
        section.pop(key, None)


def _drop_time_limit(data: dict[str, Any], usual: TimeLimit | None, overrides: Sequence[Override]) -> None:
    """Remove a time limit that was the former environment's default, so that the new one's replaces it."""
    targets = data.get("targets")
    said = any(override.path in (("targets",), ("targets", "time_limit")) for override in overrides)
    if not said and isinstance(targets, dict) and targets.get("time_limit") == usual:
        targets.pop("time_limit", None)


def _assign(data: dict[str, Any], override: Override, root: SectionType) -> Problem | None:
    section = data
    for depth, key in enumerate(override.path[:-1], start=1):
        inner = section.get(key)
        if inner is None:
            inner = section[key] = _default_kind(key, root) if depth == 1 else {}
        if not isinstance(inner, dict):
            holder = ".".join(override.path[:depth])
            return Problem(
                ".".join(override.path), f"{holder} is not a section", found=repr(inner), place=override.text
            )
        section = inner
    section[override.path[-1]] = override.value
    return None


def _default_kind(key: str, root: SectionType) -> dict[str, Any]:
    """Return the start of an omitted section: its `name` if the default is one of several kinds."""
    field = root.model_fields.get(key)
    name = getattr(field.default, "name", None) if field else None
    return {} if name is None else {"name": name}
