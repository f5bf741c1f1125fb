"""Perturbed episodes of a training, in a recipe."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from vla_rl.section import Problem, RulesError, Section, Text, distinct


class PerturbSection(Section):
    """Domain randomisation: a share of the episodes is perturbed; see `vla-rl eval --perturb`."""

    kinds: list[Text] = Field(
        ["camera", "light", "texture"],
        description="kinds or groups of perturbations, with levels from 1 to 5, like camera:1-3",
    )
    share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="share of the episodes that are perturbed")

    @model_validator(mode="after")
    def _kinds_exist(self) -> Self:
        from vla_rl.envs.libero.perturbations.randomisation import training_perturbations

        problems = distinct("kinds", self.kinds)
        for entry in self.kinds:
            try:
                training_perturbations([entry])
            except ValueError as error:
                fault, _, allowed = str(error).removeprefix(f"{entry.strip()!r} ").partition(". Allowed are ")
                problems.append(Problem("kinds", fault, entry, allowed))
        if problems:
            raise RulesError(problems)
        return self

    def __str__(self) -> str:
        return f"{', '.join(self.kinds)} in {100 * self.share:g} % of the episodes"
