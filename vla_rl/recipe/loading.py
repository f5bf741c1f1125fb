"""From a file and overrides to a recipe, or to all that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources.abc import Traversable
from typing import Annotated, Any, get_args

from pydantic import TypeAdapter, ValidationError

from vla_rl.errors import UserError
from vla_rl.recipe.dialect import Document, YamlError, parse
from vla_rl.recipe.dialect import Path as KeyPath
from vla_rl.recipe.model import Recipe
from vla_rl.recipe.overrides import Override, apply_overrides, parse_overrides
from vla_rl.recipe.problems import RecipeError
from vla_rl.recipe.rules import broken_rules
from vla_rl.recipe.sections import TimeLimit
from vla_rl.recipe.translate import dotted_path, problems_of
from vla_rl.section import Problem

EARLIER_TIME_LIMIT: TimeLimit = "bootstrap"  # of every run that is older than targets.time_limit
_LARGEST_BYTES = 200_000  # a recipe with every field has 4,000; what is far larger would be parsed for minutes


def load_recipe(path: Traversable, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: a YAML file in UTF-8.
        overrides: `key.sub=value`, the value in YAML; a later one wins over an earlier one.

    Raises:
        RecipeError: with every problem of the file and of the overrides.
        UserError: the file cannot be read.
    """
    return build_recipe(_read(path), overrides, source=str(path))


def load_recorded_recipe(path: Traversable, overrides: Sequence[str] = ()) -> Recipe:
    """As `load_recipe`, of a `recipe.yaml` that a run wrote; a field that is younger than it means what the run did."""
    return load_recipe(path, [f"targets.time_limit={recorded_time_limit(path) or EARLIER_TIME_LIMIT}", *overrides])


def recorded_time_limit(path: Traversable) -> TimeLimit | None:
    """The `targets.time_limit` of a `recipe.yaml` that a run wrote; None if it has none, so that the run is older.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        data = parse(_read(path)).data
    except YamlError:
        return None  # told where the recipe is built
    targets = data.get("targets") if isinstance(data, dict) else None
    found = targets.get("time_limit") if isinstance(targets, dict) else None
    return found if found in get_args(TimeLimit) else None


def build_recipe(text: str, overrides: Sequence[str] = (), *, source: str = "recipe") -> Recipe:
    """As `load_recipe`, from YAML text; `source` names it in errors."""
    try:
        document = parse(text)
    except YamlError as error:
        raise RecipeError(source, [Problem("", f"not readable as YAML: {error}")]) from error
    if not isinstance(document.data, dict):
        found = "nothing" if document.data is None else type(document.data).__name__
        raise RecipeError(source, [Problem("", "a recipe is a YAML mapping of sections", found=found)])
    data: dict[str, Any] = document.data
    problems = _document_problems(document)
    assignments, unreadable = parse_overrides(overrides)
    problems += unreadable + apply_overrides(data, assignments)
    data = {key: value for key, value in data.items() if isinstance(key, str)}
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(source, problems + _placed(_all_problems(error, data), document, assignments)) from None
    if problems:
        raise RecipeError(source, problems)
    return recipe


def _read(path: Traversable) -> str:
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


def _document_problems(document: Document) -> list[Problem]:
    repeated = [
        Problem(dotted_path(path), "this key stands twice", hint=f"first on line {first}", place=f"line {second}")
        for path, first, second in document.repeated
    ]
    odd = [
        Problem(dotted_path(path), "a key must be text", found=key, place=f"line {line}")
        for path, line, key in document.odd_keys
    ]
    return repeated + odd


def _all_problems(error: ValidationError, data: Mapping[str, Any]) -> list[tuple[KeyPath, Problem]]:
    """The faults of the sections, and those between sections that are right in themselves."""
    found = problems_of(error)
    sound: dict[str, Any] = {}
    for name, field in Recipe.model_fields.items():
        value = data[name] if name in data else field.get_default()
        try:
            sound[name] = _adapter(name).validate_python(value)
        except ValidationError:
            continue
    told = {problem.path for _, problem in found}
    return found + [((), problem) for problem in broken_rules(sound) if problem.path not in told]


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    """The validator of one field of a recipe by itself."""
    field = Recipe.model_fields[name]
    annotation: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotation)


def _placed(
    found: Sequence[tuple[KeyPath, Problem]], document: Document, overrides: Sequence[Override]
) -> list[Problem]:
    """The problems with the line or the override that each comes from."""
    return [replace(problem, place=_place(path, problem, document, overrides)) for path, problem in found]


def _place(path: KeyPath, problem: Problem, document: Document, overrides: Sequence[Override]) -> str:
    key_path = path if dotted_path(path) == problem.path else tuple(problem.path.split("."))
    for override in reversed(overrides):
        if key_path[: len(override.path)] == override.path:
            return override.text
    while key_path:
        if key_path in document.lines:
            return f"line {document.lines[key_path]}"
        key_path = key_path[:-1]
    return ""
