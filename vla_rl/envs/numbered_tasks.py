"""Section of an environment whose tasks are numbers, each of which seeds other starts."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from vla_rl.envs.kind import EnvironmentSection
from vla_rl.section import NonNegative, RulesError, distinct


class NumberedTasksSection(EnvironmentSection):
    """Base of the section of an environment that has a task for every number from 0."""

    tasks: list[NonNegative] = Field([0], description="task ids; each has its own starts")

    @model_validator(mode="after")
    def _tasks_are_distinct(self) -> Self:
        problems = distinct("tasks", self.tasks)
        if problems:
            raise RulesError(problems)
        return self

    @property
    def task_ids(self) -> list[int]:
        """Return the task ids, in order."""
        return list(self.tasks)
