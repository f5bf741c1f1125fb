"""Low-rank adapters in a recipe."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from vla_rl.section import Problem, RulesError, Scale, Section, Text

LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraSection(Section):
    """Low-rank adapters on the language model's linear layers: W x + alpha / rank · B A x."""

    rank: Annotated[int, Field(ge=1, le=4096)] = Field(32, description="rank of the adapters")
    alpha: Scale = Field(16.0, description="adapters are scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="dropout on the adapters' input")
    targets: list[Text] = Field(list(LLAMA_LINEARS), description="names of the linear layers that get adapters")

    @model_validator(mode="after")
    def _targets_are_layers(self) -> Self:
        if not self.targets or set(self.targets) - set(LLAMA_LINEARS):
            problem = Problem(
                "targets",
                "names of linear layers of Llama, one or more",
                str(self.targets),
                ", ".join(LLAMA_LINEARS),
                "the action rows of lm_head are trained by policy.train_action_rows=true instead",
            )
            raise RulesError([problem])
        return self
