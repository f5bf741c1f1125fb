"""Definitions of tasks (BDDL files) read as LIBERO's parser reads them, and what would stop LIBERO later.

LIBERO finds a wrong name only when it builds or steps the task, in a worker, and evaluates the numbers of
`:yaw_rotation` as Python. Nothing in a file is run here, and a file with faults never reaches LIBERO.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from vla_rl.envs.libero.asset_files import PART_OF_ARENA, ROOMS
from vla_rl.envs.libero.suites import wheel_root

Tree = list["str | Tree"]

_COMMENT = re.compile(r";.*$", re.MULTILINE)
_TOKEN = re.compile(r"[()]|[^\s()]+")
_ANGLE = re.compile(r"[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+|pi)(?:[*/]\d+\.?\d*)?")
_BLOCKS = frozenset(
    {":domain", ":language", ":regions", ":fixtures", ":objects", ":obj_of_interest", ":init", ":goal", "problem"}
)
_ARITY = {"on": 2, "in": 2, "open": 1, "close": 1, "turnon": 1, "turnoff": 1, "up": 1}
_PROBLEMS = {name.lower() for name in ROOMS}


class BadDefinitionError(ValueError):
    """A text that is no definition of a task at all."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One task as its BDDL file defines it, in lower case as LIBERO's parser has it."""

    problem: str  # name of the problem class
    language: str
    fixtures: dict[str, str]  # category by name
    objects: dict[str, str]
    regions: frozenset[str]  # as predicates name them: target and name
    init: tuple[tuple[str, ...], ...]  # predicates: their names and arguments
    goal: tuple[tuple[str, ...], ...]
    faults: tuple[str, ...]  # of blocks that could be read, but not used


def parse_definition(text: str) -> Definition:
    """Parse a BDDL file.

    Raises:
        BadDefinitionError: its parentheses do not match, or it is no `(define (problem ...) ...)`.
    """
    tree = _tree(text)
    if not tree or tree[0] != "define":
        raise BadDefinitionError("it does not begin with (define ...")
    blocks: dict[str, Tree] = {}
    faults = []
    for block in tree[1:]:
        name = block[0] if isinstance(block, list) and block else block
        if not isinstance(name, str) or not isinstance(block, list):
            raise BadDefinitionError(f"it has {name!r} where a block like (:goal ...) belongs")
        if name not in _BLOCKS:
            faults.append(f"block ({name} ...) is not LIBERO's, so it would have no effect")
        elif name in blocks:
            faults.append(f"block ({name} ...) is there twice")
        blocks[name] = block[1:]
    faults += [f"block ({name} ...) is missing" for name in sorted(_BLOCKS - {":obj_of_interest", *blocks})]
    regions, region_faults = _regions(blocks.get(":regions", []))
    goal = blocks.get(":goal", [])
    conjunction = goal[0][1:] if goal and isinstance(goal[0], list) and goal[0][:1] == ["and"] else goal
    return Definition(
        problem=" ".join(_words(blocks.get("problem", []))),
        language=" ".join(_words(blocks.get(":language", []))),
        fixtures=_declared(blocks.get(":fixtures", [])),
        objects=_declared(blocks.get(":objects", [])),
        regions=regions,
        init=_predicates(blocks.get(":init", [])),
        goal=_predicates(conjunction),
        faults=(*faults, *region_faults),
    )


def faults_of(definition: Definition) -> Iterator[str]:
    """Yield everything that would stop LIBERO, or that it would ignore."""
    yield from definition.faults
    if definition.problem and definition.problem not in _PROBLEMS:
        yield f"problem class {definition.problem!r} is not LIBERO's"
    if not definition.language:
        yield "(:language ...) has no words"
    for name, category in (*definition.objects.items(), *definition.fixtures.items()):
        allowed = object_categories() | (PART_OF_ARENA if name in definition.fixtures else set())
        if category not in allowed:
            yield f"{name!r} is of category {category!r}, which LIBERO does not have"
    known = {*definition.fixtures, *definition.objects, *definition.regions}
    for block, predicates in ((":init", definition.init), (":goal", definition.goal)):
        if not predicates:
            yield f"({block} ...) is empty"
        for predicate in predicates:
            yield from (f"({' '.join(predicate)}) in {block} {fault}" for fault in _predicate_faults(predicate, known))


def _predicate_faults(predicate: tuple[str, ...], known: set[str]) -> Iterator[str]:
    name, *arguments = predicate
    if name not in _ARITY:
        yield f"is none of {', '.join(_ARITY)}"
    elif len(arguments) != _ARITY[name]:
        yield f"must name {_ARITY[name]}"
    elif unknown := [it for it in arguments if it not in known]:
        yield f"names {', '.join(unknown)}, which the file does not declare"


@cache
def object_categories() -> frozenset[str]:
    """Return the categories of objects and fixtures that the installed hf-libero registers, without importing it."""
    found = set()
    for file in (wheel_root() / "envs" / "objects").glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            marks = node.decorator_list if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.ClassDef) and "register_object" in map(ast.unparse, marks):
                found.add("_".join(re.sub(r"([A-Z0-9])", r" \1", node.name).split()).lower())
    return frozenset(found)


def _tree(text: str) -> Tree:
    stack: list[Tree] = []
    tree: Tree = []
    for token in _TOKEN.findall(_COMMENT.sub("", text).lower()):
        if token == "(":
            stack.append(tree)
            tree = []
        elif token == ")":
            if not stack:
                raise BadDefinitionError("a parenthesis is closed that was never opened")
            stack[-1].append(tree)
            tree = stack.pop()
        else:
            tree.append(token)
    if stack:
        raise BadDefinitionError("a parenthesis is opened that is never closed")
    if len(tree) != 1 or not isinstance(tree[0], list):
        raise BadDefinitionError("it is not one (define ...)")
    return tree[0]


def _words(block: Tree) -> list[str]:
    return [it for it in block if isinstance(it, str)]


def _declared(block: Tree) -> dict[str, str]:
    """Return the category of every name of `a b - category c - other`."""
    found: dict[str, str] = {}
    names: list[str] = []
    words = iter(_words(block))
    for word in words:
        if word == "-":
            found |= dict.fromkeys(names, next(words, ""))
            names = []
        else:
            names.append(word)
    return found | dict.fromkeys(names, "")


def _predicates(block: Tree) -> tuple[tuple[str, ...], ...]:
    """Return the predicates of a block; what is nested deeper becomes a word that no predicate has."""
    return tuple(
        tuple(it if isinstance(it, str) else "(...)" for it in one) if isinstance(one, list) and one else (str(one),)
        for one in block
    )


def _regions(block: Tree) -> tuple[frozenset[str], list[str]]:
    """Return the names of the regions, and what is wrong with them."""
    names, faults = [], []
    for region in block:
        if not isinstance(region, list) or not region or not isinstance(region[0], str):
            faults.append("(:regions ...) holds something else than regions")
            continue
        attributes = {it[0]: it[1:] for it in region[1:] if isinstance(it, list) and it and isinstance(it[0], str)}
        target = _words(attributes.get(":target", []))
        if len(target) != 1:
            faults.append(f"region {region[0]!r} has no (:target ...)")
        names += [f"{one}_{region[0]}" for one in target]
        for name in attributes.keys() - {":target", ":ranges", ":yaw_rotation", ":rgba"}:
            faults.append(f"region {region[0]!r} has {name}, which LIBERO does not know")
        rows = _rows(attributes.get(":ranges", []))
        if not all(len(row) == 4 and all(map(_is_number, row)) for row in rows):
            faults.append(f"region {region[0]!r}: :ranges must be rectangles of four numbers")
        angles = itertools.chain.from_iterable(_rows(attributes.get(":yaw_rotation", [])))
        if not all(_ANGLE.fullmatch(angle) for angle in angles):  # LIBERO evaluates them as Python
            faults.append(f"region {region[0]!r}: :yaw_rotation must be numbers")
    return frozenset(names), faults


def _rows(attribute: Tree) -> list[list[str]]:
    """Return the rows of `((a b) (c d))` as an attribute has them."""
    table = attribute[0] if attribute and isinstance(attribute[0], list) else []
    return [_words(row) if isinstance(row, list) else [row] for row in table]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
