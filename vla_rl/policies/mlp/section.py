"""The multi-layer perceptron in a recipe."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from vla_rl.policies.kind import PolicyContext, PolicyPlan, PolicySection


class MLPSection(PolicySection):
    """A multi-layer perceptron over state observations."""

    name: Literal["mlp"]
    hidden_dim: Annotated[int, Field(ge=2, le=8192)] = Field(
        128, description="width of the hidden layers; the value head has half of it"
    )
    num_bins: Annotated[int, Field(ge=2, le=256)] = Field(256, description="bins of a categorical action component")
    value_head: Literal["mlp", "none"] = Field("mlp", description="none: no critic, which targets.name=group requires")
    distribution: Literal["categorical", "gaussian"] = Field(
        "categorical",
        description="distribution of every action component: categorical over bins, as in the VLA, or Gaussian",
    )

    output_scale: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        1.0, description="factor on the initial weights of the policy's last layer; 0.01: a Gaussian's means start at 0"
    )
    mean: Literal["linear", "tanh"] = Field(
        "linear", description="a Gaussian's mean. linear: any number; tanh: between the actions' bounds, -1 and 1"
    )
    state_dependent_std: bool = Field(
        True, description="a Gaussian's deviation is an output of the network; false: one number per component"
    )
    initial_std: Annotated[float, Field(gt=0.1, lt=1.0)] | None = Field(
        None, description="a Gaussian's deviation before training; null: 0.316, halfway between its bounds"
    )

    def plan(self, context: PolicyContext) -> PolicyPlan:
        """Turn the section into plain values."""
        from vla_rl.policies.mlp.network import build_mlp
        from vla_rl.policies.small import plan_small

        fixed: dict[str, str] = {"policy.distribution": self.distribution}
        if self.distribution == "gaussian":
            fixed["policy.mean"] = self.mean
        return plan_small(partial(build_mlp, self, context), kind="MLP", fixed=fixed)
