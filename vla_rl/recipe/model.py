"""Model of a recipe."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from vla_rl.credit import AnyCredit, Gae
from vla_rl.envs.kinds import EnvSection
from vla_rl.policies.kinds import AnyPolicy
from vla_rl.recipe import dialect
from vla_rl.recipe.completion import completed
from vla_rl.recipe.regimes import RegimeName
from vla_rl.recipe.rules import broken_rules
from vla_rl.recipe.sections import (
    AlarmsSection,
    BudgetSection,
    CheckpointSection,
    EvaluationSection,
    LearnerSection,
    LoggingSection,
    ReplaySection,
    RolloutSection,
    RuntimeSection,
)
from vla_rl.recipe.setup import Setup
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.optimizer_section import OptimizerSection
from vla_rl.rl.surrogates import AnySurrogate
from vla_rl.section import RulesError, RunName, Section, Seed, Text


class Recipe(Section):
    """Everything about a run: a setup, an algorithm and a budget."""

    name: RunName = Field(description="name of the run's folder")
    description: Text = Field("", description="one line, for people")
    seed: Seed = Field(0, description="seed of weights, environments, actions and sampling")
    regime: RegimeName | None = Field(
        None, description="how old the samples are: sets replay.replay_ratio and replay.old_threshold from the budget"
    )
    env: EnvSection
    policy: AnyPolicy
    surrogate: AnySurrogate
    targets: AnyCredit = Gae(name="gae")
    loss: LossWeights = LossWeights()
    optimizer: OptimizerSection = OptimizerSection()
    replay: ReplaySection = ReplaySection()
    learner: LearnerSection = LearnerSection()
    rollout: RolloutSection = RolloutSection()
    runtime: RuntimeSection = RuntimeSection()
    budget: BudgetSection
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()
    alarms: AlarmsSection = AlarmsSection()
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="before")
    @classmethod
    def _what_follows_from_others(cls, data: Any) -> Any:  # noqa: ANN401 - whatever was given
        return completed(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        found = broken_rules({name: getattr(self, name) for name in type(self).model_fields})
        if found:
            raise RulesError(found)
        return self

    @property
    def setup(self) -> Setup:
        """Return the part of the recipe that is not about learning."""
        return Setup(
            seed=self.seed,
            env=self.env,
            policy=self.policy,
            rollout=self.rollout,
            runtime=self.runtime,
            precision=self.learner.precision,
        )

    def dump_yaml(self) -> str:
        """Return every field with its value as YAML, defaults included; loading it gives an equal recipe."""
        return dialect.dump(self.model_dump(mode="json", by_alias=True))
