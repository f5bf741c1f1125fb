"""Loading of a recipe from a file, its base and overrides, or of all problems with them.

A file may begin with `base: NAME`. It then holds the differences from the base, and each of its values counts as an
override of the base: another kind of a section drops the fields that only the previous kind has. A base has no base of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from vla_rl.errors import UserError
from vla_rl.recipe.completion import completed
from vla_rl.recipe.dialect import Document, YamlError, parse
from vla_rl.recipe.dialect import Path as KeyPath
from vla_rl.recipe.installed import missing_packages
from vla_rl.recipe.library import find_base, read_text
from vla_rl.recipe.model import Recipe
from vla_rl.recipe.overrides import Override, apply_overrides, lay_over, parse_overrides
from vla_rl.recipe.problems import RecipeError
from vla_rl.recipe.rules import RULES, SUPERVISED_RULES, broken_rules
from vla_rl.recipe.setup import Setup
from vla_rl.recipe.shape import SectionType
from vla_rl.recipe.supervised import SupervisedRecipe
from vla_rl.recipe.translate import BASE, dotted_path, problems_of, shown
from vla_rl.section import Problem, TimeLimit

AnyRecipe = TypeVar("AnyRecipe", Recipe, SupervisedRecipe)
EARLIER_TIME_LIMIT: TimeLimit = "bootstrap"  # value of every run that is older than targets.time_limit


@dataclass(frozen=True, slots=True)
class Layer:
    """One of the files that a recipe is made of."""

    document: Document
    suffix: str  # prefix of its places: empty for the recipe itself, which the error names


def load_recipe(path: Traversable, overrides: Sequence[str] = (), *, runs_here: bool = False) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: a YAML file in UTF-8.
        overrides: `key.sub=value`, the value in YAML; a later one wins over an earlier one.
        runs_here: check too that the packages are installed which only a run needs.

    Raises:
        RecipeError: with every problem of the file and of the overrides.
        UserError: the file cannot be read.
    """
    return _build(Recipe, read_text(path), overrides, source=str(path), folder=_folder_of(path), runs_here=runs_here)


def load_supervised_recipe(
    path: Traversable, overrides: Sequence[str] = (), *, runs_here: bool = False
) -> SupervisedRecipe:
    """Read, override and check a recipe of the supervised stage; otherwise like `load_recipe`."""
    return _build(
        SupervisedRecipe, read_text(path), overrides, source=str(path), folder=_folder_of(path), runs_here=runs_here
    )


def load_any_recipe(path: Traversable, overrides: Sequence[str] = ()) -> Recipe | SupervisedRecipe:
    """Load the recipe of whatever stage a file is for; otherwise like `load_recipe`."""
    return load_supervised_recipe(path, overrides) if is_supervised(path) else load_recipe(path, overrides)


def _folder_of(path: Traversable) -> Path:
    """Return the folder that the path of a base is relative to; a file in a zip archive names its base without one."""
    return path.parent if isinstance(path, Path) else Path()


def is_supervised(path: Traversable) -> bool:
    """Return whether a file is a recipe of the supervised stage: only these, and all of these, name demonstrations.

    Its base may name them.

    Raises:
        UserError: the file cannot be read.
    """
    data = _sections_in(path)
    written = data.get(BASE)
    if "demos" in data or not isinstance(written, str):
        return "demos" in data
    try:
        return "demos" in _sections_in(find_base(written, folder=_folder_of(path)))
    except UserError:
        return False  # reported where the recipe is built


def _sections_in(path: Traversable) -> dict[Any, Any]:
    """Return what a file says, and nothing if it is no mapping, which is reported where the recipe is built."""
    try:
        data = parse(read_text(path)).data
    except YamlError:
        return {}
    return data if isinstance(data, dict) else {}


def load_recorded_recipe(path: Traversable, overrides: Sequence[str] = ()) -> Recipe:
    """Load a `recipe.yaml` that a run wrote; newer fields get the values that match the run's behaviour."""
    return load_recipe(path, [f"targets.time_limit={recorded_time_limit(path) or EARLIER_TIME_LIMIT}", *overrides])


def recorded_time_limit(path: Traversable) -> TimeLimit | None:
    """Return `targets.time_limit` of a `recipe.yaml` that a run wrote; None if the run is older than the field.

    Raises:
        UserError: the file cannot be read.
    """
    targets = _sections_in(path).get("targets")
    found = targets.get("time_limit") if isinstance(targets, dict) else None
    return found if found in get_args(TimeLimit) else None


def build_recipe(
    text: str, overrides: Sequence[str] = (), *, source: str = "recipe", folder: Path | None = None
) -> Recipe:
    """Build a recipe from YAML text, otherwise like `load_recipe`.

    Args:
        text: YAML.
        overrides: as in `load_recipe`.
        source: names the text in errors.
        folder: folder to which the path of a base is relative; default: the current one.
    """
    return _build(Recipe, text, overrides, source=source, folder=folder or Path())


def build_supervised_recipe(
    text: str, overrides: Sequence[str] = (), *, source: str = "recipe", folder: Path | None = None
) -> SupervisedRecipe:
    """Build a recipe of the supervised stage from YAML text; arguments as `build_recipe`."""
    return _build(SupervisedRecipe, text, overrides, source=source, folder=folder or Path())


def _build(
    root: type[AnyRecipe],
    text: str,
    overrides: Sequence[str],
    *,
    source: str,
    folder: Path,
    runs_here: bool = False,
) -> AnyRecipe:
    try:
        layers, data, problems = _with_base(_parse(text), folder, source, root)
    except _NotAMappingError as error:
        raise RecipeError(source, [error.problem]) from error
    assignments, unreadable = parse_overrides(overrides)
    assignments, misplaced = _without_base(assignments)
    problems += unreadable + misplaced + apply_overrides(data, assignments, root)
    data = {key: value for key, value in data.items() if isinstance(key, str)}
    missing: list[tuple[KeyPath, Problem]] = [((), problem) for problem in missing_packages(data) if runs_here]
    problems += _placed(missing, layers, assignments)
    try:
        recipe = root.model_validate(data)
    except ValidationError as error:
        raise RecipeError(source, problems + _placed(_all_problems(error, data, root), layers, assignments)) from None
    if problems:
        raise RecipeError(source, problems)
    return recipe


def change_setup(setup: Setup, changes: Mapping[tuple[str, ...], object], *, source: str) -> Setup:
    """Return the setup with other values, checked as those of a recipe are.

    Args:
        setup: setup to start from.
        changes: key path to value.
        source: names the result in errors.

    Raises:
        RecipeError: with every problem of the new values.
    """
    data = setup.model_dump(by_alias=True)
    for path, value in changes.items():
        section = data
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = value
    try:
        return Setup.model_validate(data)
    except ValidationError as error:
        raise RecipeError(source, [problem for _, problem in problems_of(error)]) from None


class _NotAMappingError(ValueError):
    """Text that holds no YAML mapping."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _parse(text: str) -> Document:
    """Read a mapping.

    Raises:
        _NotAMappingError: it is something else.
    """
    try:
        document = parse(text)
    except YamlError as error:
        raise _NotAMappingError(Problem("", f"not readable as YAML: {error}")) from error
    if not isinstance(document.data, dict):
        found = "nothing" if document.data is None else type(document.data).__name__
        raise _NotAMappingError(Problem("", "a recipe is a YAML mapping of sections", found=found))
    return document


def _with_base(
    document: Document, folder: Path, source: str, root: SectionType
) -> tuple[list[Layer], dict[str, Any], list[Problem]]:
    """Lay a file over its base, if it has one.

    Returns:
        The files, the recipe's own first; their merged data; and their problems as documents.

    Raises:
        RecipeError: there is no such base, or it cannot be one.
    """
    own = Layer(document, "")
    if BASE not in document.data:
        return [own], document.data, _document_problems(own)
    base = _read_base(document, folder, source)
    changes = {key: value for key, value in document.data.items() if key != BASE}
    data: dict[str, Any] = base.document.data
    return (
        [own, base],
        data,
        _document_problems(own) + _document_problems(base) + lay_over(data, changes, document.lines, root),
    )


def _read_base(document: Document, folder: Path, source: str) -> Layer:
    """Read the base of a file.

    Raises:
        RecipeError: with the one problem.
    """
    written = document.data[BASE]

    def refused(rule: str, hint: str = "", allowed: str = "") -> RecipeError:
        place = f"line {document.lines[BASE,]}"
        return RecipeError(source, [Problem(BASE, rule, shown(written), allowed, hint, place)])

    if not isinstance(written, str):
        raise refused("wrong type", allowed="the name of a base or recipe that comes with the program, or a path")
    try:
        path = find_base(written, folder=folder)
        text = read_text(path)
    except UserError as error:
        raise refused(f"no such base: {error}") from error
    if _is_same(path, source):
        raise refused("a recipe cannot be its own base", hint="leave the key out, or name another file")
    try:
        base = _parse(text)
    except _NotAMappingError as error:
        found = f" (found {error.problem.found})" if error.problem.found else ""
        raise refused(f"{path}: {error.problem.rule}{found}") from error
    if BASE in base.data:
        raise refused(
            f"a base has no base of its own, and that of {path} is {shown(base.data[BASE])}",
            hint=f"name the latter, or make a whole file of the former: `vla-rl recipes show {written} > whole.yaml`",
        )
    return Layer(base, f" of {path}")


def _is_same(path: Traversable, source: str) -> bool:
    """Return whether a file is the recipe's own; a recipe from elsewhere has no file."""
    try:
        return isinstance(path, Path) and path.samefile(source)
    except OSError:
        return False


def _without_base(assignments: Sequence[Override]) -> tuple[list[Override], list[Problem]]:
    """Return the overrides except those of `base`, which are returned as problems."""
    kept = [override for override in assignments if override.path != (BASE,)]
    misplaced = [
        Problem(
            BASE,
            "a base stands in a file: on the command line it would come after what is laid over it",
            found=shown(override.value),
            hint="name a recipe that has this base, or write a file",
            place=override.text,
        )
        for override in assignments
        if override.path == (BASE,)
    ]
    return kept, misplaced


def _document_problems(layer: Layer) -> list[Problem]:
    repeated = [
        Problem(
            dotted_path(path),
            "this key stands twice",
            hint=f"first on line {first}",
            place=f"line {second}{layer.suffix}",
        )
        for path, first, second in layer.document.repeated
    ]
    odd = [
        Problem(dotted_path(path), "a key must be text", found=key, place=f"line {line}{layer.suffix}")
        for path, line, key in layer.document.odd_keys
    ]
    return repeated + odd


def _all_problems(error: ValidationError, data: Mapping[str, Any], root: SectionType) -> list[tuple[KeyPath, Problem]]:
    """Return the faults of the sections, and those between sections that are valid on their own."""
    found, data = problems_of(error, root), data if root is SupervisedRecipe else completed(data)
    sound: dict[str, Any] = {}
    for name, field in root.model_fields.items():
        value = data[name] if name in data else field.get_default()
        try:
            sound[name] = _adapter(root, name).validate_python(value)
        except ValidationError:
            continue
    told = {problem.path for _, problem in found}
    rules = SUPERVISED_RULES if root is SupervisedRecipe else RULES
    return found + [((), problem) for problem in broken_rules(sound, rules) if problem.path not in told]


@cache
def _adapter(root: SectionType, name: str) -> TypeAdapter[Any]:
    """Return the validator of one field of a recipe on its own."""
    field = root.model_fields[name]
    annotation: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotation)


def _placed(
    found: Sequence[tuple[KeyPath, Problem]], layers: Sequence[Layer], overrides: Sequence[Override]
) -> list[Problem]:
    """Add to the problems the line or the override that each comes from."""
    return [replace(problem, place=_place(path, problem, layers, overrides)) for path, problem in found]


def _place(path: KeyPath, problem: Problem, layers: Sequence[Layer], overrides: Sequence[Override]) -> str:
    key_path = path if dotted_path(path) == problem.path else tuple(problem.path.split("."))
    for override in reversed(overrides):
        if key_path[: len(override.path)] == override.path:
            return override.text
    while key_path:
        for layer in layers:
            if key_path in layer.document.lines:
                return f"line {layer.document.lines[key_path]}{layer.suffix}"
        key_path = key_path[:-1]
    within = (override.text for override in overrides if override.path[0] == problem.path)  # a section of their own
    return next(within, "")
