"""Error that reports every fault of a recipe at once."""

from __future__ import annotations

from collections.abc import Sequence

from vla_rl.errors import UserError
from vla_rl.section import Problem


class RecipeError(UserError):
    """All faults of one recipe."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([f"{source}: {count}", *(_indented(problem) for problem in problems)]))
        self.source = source
        self.problems = list(problems)


def _indented(problem: Problem) -> str:
    return "\n".join(f"  {line}" for line in str(problem).splitlines())
