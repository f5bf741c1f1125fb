"""Setup: the settings that training, evaluation and export share, independent of the algorithm."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from vla_rl.envs.kinds import EnvSection
from vla_rl.policies.kinds import AnyPolicy
from vla_rl.recipe.rules import broken_rules
from vla_rl.recipe.sections import Precision, RolloutSection, RuntimeSection
from vla_rl.section import RulesError, Section, Seed


class Setup(Section):
    """A policy in an environment, and how both run. A recipe is a setup, an algorithm and a budget."""

    seed: Seed = Field(0, description="seed of weights, environments and actions")
    env: EnvSection
    policy: AnyPolicy
    rollout: RolloutSection = RolloutSection()
    runtime: RuntimeSection = RuntimeSection()
    precision: Precision = Field(
        "fp32", description="precision of every pass through the policy; learner.precision of a recipe"
    )

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        found = broken_rules({name: getattr(self, name) for name in type(self).model_fields})
        if found:
            raise RulesError(found)
        return self
