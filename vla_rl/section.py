"""Base of every section of a recipe: strict models, numbers with limits, and problems of wrong values.

A section is a part of a recipe. A section that belongs to a kind of environment, policy or surrogate is defined with
that kind; this module is their common base and depends only on pydantic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

# Every number has a limit, beyond which it would overflow 64-bit counters, 32-bit floats or the system's waits. A dry
# run reports what the machine can hold, rules report what does not fit another field.
LARGEST_COUNT = 10**12

Positive = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]  # ranks and parts add to it, and torch takes less than 2**64
Processes = Annotated[int, Field(ge=1, le=4096)]
Horizon = Annotated[int, Field(ge=1, le=10**6)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(gt=0.0, le=1e9)]
Scale = Annotated[float, Field(ge=1e-6, le=1e6)]  # its square and its inverse stay within 32-bit floats
Weight = Annotated[float, Field(ge=0.0, le=1e6)]
LearningRate = Annotated[float, Field(ge=0.0, le=1.0)]  # AdamW moves a weight by about this much in every step

TimeLimit = Literal["end", "bootstrap"]  # meaning of a horizon for the task: part of it, or an interruption


@dataclass(frozen=True, slots=True)
class Problem:
    """Fault of a recipe: the field, the rule it breaks, the found and the allowed value."""

    path: str  # dotted; empty for the recipe as a whole
    rule: str
    found: str = ""
    allowed: str = ""
    hint: str = ""
    place: str = ""  # "line 7", or the override as it was written

    def __str__(self) -> str:
        title = f"{self.path or 'recipe'}: {self.rule}"
        details = {"found": self.found, "allowed": self.allowed, "hint": self.hint, "at": self.place}
        return "\n".join([title, *(f"    {name:<8} {text}" for name, text in details.items() if text)])


class RulesError(ValueError):
    """Raised inside the models; paths are relative to the section that raises."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{it.path}: {it.rule} (found {it.found})" for it in problems))
        self.problems = list(problems)


def distinct(field: str, values: Sequence[int | str]) -> list[Problem]:
    """Check the rule of every list of ids or names; the text 'all' passes."""
    if values == "all" or (values and len(set(values)) == len(values)):
        return []
    return [Problem(field, "at least one entry, and none twice", str(values))]


def _can_be_a_path(text: str) -> str:
    """Check the system's limits of a path, so that looking it up cannot fail."""
    names = text.encode(errors="replace").split(b"/")
    if not text or "\0" in text or sum(map(len, names)) + len(names) > 4096 or max(map(len, names)) > 255:
        raise PydanticCustomError("not_a_path", "cannot be a path")
    return text


def _can_be_written(text: str) -> str:
    """Refuse lone surrogates, which neither files nor terminals can encode."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise PydanticCustomError("not_unicode", "half a letter, which cannot be written to a file")
    return text


Text = Annotated[str, AfterValidator(_can_be_written)]
RunName = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
PathText = Annotated[Text, AfterValidator(_can_be_a_path)]


def path_from_here(text: str, started_in: Path | None) -> str:
    """Return a path of a run's recipe as it leads from here: where it leads nowhere, as the run meant it.

    Args:
        text: relative to the directory that the run was started in, if it is relative.
        started_in: that directory; None: unknown.
    """
    path = Path(text).expanduser()
    if started_in is None or path.is_absolute() or path.exists() or not (started_in / path).exists():
        return text
    return str(started_in / path)


def lost_path(field: str, text: str, started_in: Path | None) -> ValueError:
    """Return the error of a relative path that leads nowhere, neither from here nor from where its run was started."""
    there = "the run's manifest does not tell" if started_in is None else f"was {started_in}, and has none either"
    return ValueError(
        f"{field}: expected a file or a folder, found none of the name {text} below {Path.cwd()}. The path is relative "
        f"to the directory that the run was started in, which {there}. "
        + ("Run the command in that directory" if started_in is None else "Put it back there")
    )


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def found_from(self, started_in: Path | None) -> Self:
        """Return the section of a run that was started elsewhere, with its relative paths as they were meant there.

        A section with paths of its own overrides this; any other, such as a whole recipe, asks the sections in it.

        Args:
            started_in: directory that the run was started in; None: unknown.

        Raises:
            ValueError: a path leads nowhere, neither from here nor from there.
        """
        found = {name: part.found_from(started_in) for name, part in self if isinstance(part, Section)}
        changed = {name: part for name, part in found.items() if part is not getattr(self, name)}
        return self.model_copy(update=changed) if changed else self
