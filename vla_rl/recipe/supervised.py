"""Model of a recipe of the supervised stage: demonstrations, a policy, an optimizer and a budget."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from vla_rl.policies.kinds import AnyPolicy
from vla_rl.recipe import dialect
from vla_rl.recipe.rules import SUPERVISED_RULES, broken_rules
from vla_rl.recipe.sections import KeptCheckpoints, OptimizerSteps
from vla_rl.recipe.supervised_sections import (
    AugmentationSection,
    DemosSection,
    SupervisedEvaluationSection,
    SupervisedLearnerSection,
    SupervisedLoggingSection,
    SupervisedLossSection,
    SupervisedRuntimeSection,
)
from vla_rl.rl.optimizer_section import AdamWSection
from vla_rl.section import RulesError, RunName, Section, Seed, Text


class SupervisedRecipe(Section):
    """Everything about a supervised run. Nothing in it is about reinforcement learning."""

    name: RunName = Field(description="name of the run's folder")
    description: Text = Field("", description="one line, for people")
    seed: Seed = Field(0, description="seed of new weights, sample order, augmentations and the split")
    demos: DemosSection
    augmentation: AugmentationSection = AugmentationSection()
    policy: AnyPolicy
    loss: SupervisedLossSection = SupervisedLossSection()
    optimizer: AdamWSection = AdamWSection()
    learner: SupervisedLearnerSection = SupervisedLearnerSection()
    runtime: SupervisedRuntimeSection = SupervisedRuntimeSection()
    budget: OptimizerSteps
    checkpoint: KeptCheckpoints = KeptCheckpoints()
    evaluation: SupervisedEvaluationSection = SupervisedEvaluationSection()
    logging: SupervisedLoggingSection = SupervisedLoggingSection()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        found = broken_rules({name: getattr(self, name) for name in type(self).model_fields}, SUPERVISED_RULES)
        if found:
            raise RulesError(found)
        return self

    def dump_yaml(self) -> str:
        """Return every field with its value as YAML, defaults included; loading it gives an equal recipe."""
        return dialect.dump(self.model_dump(mode="json", by_alias=True))
