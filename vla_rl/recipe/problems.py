"""What can be said about a wrong recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla_rl.errors import UserError


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: the field, the rule it breaks, what was found and what is allowed."""

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


class RecipeError(UserError):
    """All the faults of one recipe."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([f"{source}: {count}", *(_indented(problem) for problem in problems)]))
        self.source = source
        self.problems = list(problems)


def _indented(problem: Problem) -> str:
    return "\n".join(f"  {line}" for line in str(problem).splitlines())
