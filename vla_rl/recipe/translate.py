"""Translation of pydantic's errors to problems: the dotted path, the rule, the found and allowed values, a hint."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vla_rl.recipe.dialect import Path
from vla_rl.recipe.model import Recipe
from vla_rl.recipe.shape import SectionType, field_names, field_sections, homes, kind_name, kinds
from vla_rl.section import Problem, RulesError

BASE = "base"  # key of a file that holds only differences from another file; not a field of a recipe
_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list, like [0,1]",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "dict_type": "a section of keys",
}
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+")
_YES_NO = {"1": "true", "0": "false"} | dict.fromkeys(("yes", "y", "on", "true"), "true")
_YES_NO |= dict.fromkeys(("no", "n", "off", "false"), "false")
_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def problems_of(error: ValidationError, root: SectionType = Recipe) -> list[tuple[Path, Problem]]:
    """Return every fault with its key path; the branches of one union (`all` or a list) are one fault.

    Args:
        error: of the validation of a `root`.
        root: model of the whole file.
    """
    found: dict[tuple[Path, str], Problem] = {}
    for details in error.errors():
        path, section = _locate(details["loc"], root)
        for problem in _translate(details, path, section, root):
            kind = f"{problem.path}: {problem.rule}" if details["type"] == "value_error" else ""
            earlier = found.get((path, kind))
            found[(path, kind)] = problem if earlier is None else _merged(earlier, problem)
    return [(path, problem) for (path, _), problem in found.items()]


def _merged(first: Problem, second: Problem) -> Problem:
    allowed = ", or ".join(dict.fromkeys(text for text in (first.allowed, second.allowed) if text))
    return replace(first, allowed=allowed, hint=first.hint or second.hint)


def _locate(loc: tuple[int | str, ...], root: SectionType) -> tuple[Path, SectionType | None]:
    """Return the key path of a pydantic location, without its union tags, and the section that holds the last key."""
    here: list[SectionType] = [root]
    holder: SectionType | None = None
    path: list[str | int] = []
    for element in loc:
        if isinstance(element, int):
            path.append(element)
        elif len(here) > 1:
            here = [section for section in here if kind_name(section) == element]
        elif here:
            holder = here[0]
            path.append(element)
            here = field_sections(holder, element)
    return tuple(path), holder


def _translate(details: ErrorDetails, path: Path, section: SectionType | None, root: SectionType) -> Iterable[Problem]:
    kind, found, context = details["type"], details["input"], details.get("ctx", {})
    dotted = dotted_path(path)
    if kind == "value_error" and isinstance(context.get("error"), RulesError):
        prefix = f"{dotted}." if dotted else ""
        return [replace(problem, path=f"{prefix}{problem.path}") for problem in context["error"].problems]
    if kind == "extra_forbidden" and section is not None:
        return [_unknown_key(path, section, root)]
    if kind == "invalid_key":  # reported by the reader of the text, which knows the line
        return []
    if kind == "missing":
        return [Problem(dotted, "this key is required")]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return [_unknown_kind(path, found, root)]
    rule, allowed = _rule(kind, details["msg"], context)
    hint = _closest(str(found), allowed.split(", ")) if kind == "literal_error" else _conversion(kind, found)
    return [Problem(dotted, rule, found=shown(found), allowed=allowed, hint=hint)]


def dotted_path(path: Path) -> str:
    """Return `env.tasks[1]` for ("env", "tasks", 1)."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in path]
    return "".join(parts).removeprefix(".")


def _unknown_key(path: Path, section: SectionType, root: SectionType) -> Problem:
    if path[-1] == "<<":
        return Problem(dotted_path(path), "merge keys are not part of YAML 1.2", hint="write the keys out")
    known = field_names(section) if len(path) > 1 else [BASE, *field_names(section)]
    kind = kind_name(section)
    owner = f"{dotted_path(path[:-1]) or 'a recipe'}{f' ({kind})' if kind else ''}"
    return Problem(
        dotted_path(path),
        f"unknown key: {owner} has none of that name",
        allowed=", ".join(known),
        hint=_meant(path, known, root),
    )


def _meant(path: Path, known: list[str], root: SectionType) -> str:
    """Guess the intended key: of another kind, elsewhere under the same name, or here under a similar one."""
    key = str(path[-1])
    others = [name for name, section in kinds(tuple(map(str, path[:-1])), root).items() if key in field_names(section)]
    if others:
        return f"it is a key of {dotted_path(path[:-1])}.name {' and '.join(others)}"
    if key in homes(root):
        return f"the key exists as {' and '.join(homes(root)[key])}"
    here = difflib.get_close_matches(key, known, n=1)
    if difflib.get_close_matches(key, here, cutoff=0.8):
        return f"did you mean '{here[0]}'?"
    elsewhere = difflib.get_close_matches(key, homes(root), n=1, cutoff=0.8)
    if elsewhere:
        return f"did you mean {' or '.join(homes(root)[elsewhere[0]])}?"
    return f"did you mean '{here[0]}'?" if here else ""


def _unknown_kind(path: Path, found: Any, root: SectionType) -> Problem:  # noqa: ANN401 - whatever the user wrote
    names = list(kinds(tuple(map(str, path)), root))
    name = found.get("name") if isinstance(found, dict) else None
    hint = _closest(str(name), list(names))
    rule = "this key is required" if name is None else "unknown name"
    written = "" if name is None else shown(name)
    return Problem(f"{dotted_path(path)}.name", rule, found=written, allowed=", ".join(names), hint=hint)


def _closest(found: str, allowed: Sequence[str]) -> str:
    """Guess the intended value, if one is close to what was written."""
    close = difflib.get_close_matches(found, allowed, n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def _rule(kind: str, message: str, context: Mapping[str, Any]) -> tuple[str, str]:
    """Return the rule and the allowed values."""
    if kind in _TYPES:
        return "wrong type", _TYPES[kind]
    if kind == "literal_error":
        return "not one of the allowed values", str(context["expected"]).replace("'", "").replace(" or ", ", ")
    if kind == "string_pattern_mismatch":
        return "not a plain name", "letters, digits, '.', '_' and '-', beginning with a letter or digit"
    if kind == "finite_number":
        return "not a finite number", "a finite number"
    if kind == "string_too_long":
        return "too long", f"at most {context['max_length']} characters"
    if kind == "not_a_path":
        return message, "1 to 4095 bytes, at most 255 between slashes, none of them NUL"
    if kind == "not_an_address":
        return message, "host:port, like cpu-node:10001: a name or four numbers, and a port of 1 to 65535"
    if kind == "not_unicode":
        return message, "whole letters: \\uD800 to \\uDFFF stand in pairs"
    limits = [f"{word} {number(context[limit])}" for limit, word in _LIMITS.items() if limit in context]
    return ("out of range", limits[0]) if limits else (message, "")


def _number_meant(text: str) -> str:
    """Return the decimal number that a text means in YAML 1.1, in a programming language, or with separators."""
    plain = text.replace("_", "")
    if re.fullmatch(r"[-+]?[0-9]{1,3}(,[0-9]{3})+", plain):  # thousands separators
        plain = plain.replace(",", "")
    elif plain.count(",") == 1:
        plain = plain.replace(",", ".")
    if _DECIMAL.fullmatch(plain):
        return plain
    if re.fullmatch(r"[-+]?0(x[0-9a-f]+|o[0-7]+|b[01]+)", plain, re.IGNORECASE):
        return str(int(plain, 0))
    if _SEXAGESIMAL.fullmatch(plain):  # base 60: 1:30 is 90
        digits = [int(part) for part in plain.lstrip("+-").split(":")]
        value = 0
        for digit in digits:
            value = 60 * value + digit
        return f"-{value}" if plain.startswith("-") else str(value)
    return ""


def number(limit: float) -> str:
    """Format a limit for people: an integer in full."""
    return str(int(limit)) if limit == int(limit) and (isinstance(limit, int) or limit < 1e9) else f"{limit:g}"


def _conversion(kind: str, found: Any) -> str:  # noqa: ANN401 - whatever the user wrote
    if kind in ("int_type", "float_type") and isinstance(found, str):
        meant = _number_meant(found) if len(found) < 40 else ""
        return f"this is text, because numbers are decimal and written without quotes; write {meant}" if meant else ""
    if kind == "bool_type" and str(found).lower() in _YES_NO:
        return f"write {_YES_NO[str(found).lower()]}"
    if kind == "int_type" and isinstance(found, float) and found.is_integer():
        return f"write {int(found)}"
    return ""


def shown(value: Any) -> str:  # noqa: ANN401 - whatever the user wrote
    """Write a value as a short text."""
    if value is None:
        return "null (nothing written)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"a section with the keys {', '.join(map(str, value)) or '(none)'}"[:200]
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
