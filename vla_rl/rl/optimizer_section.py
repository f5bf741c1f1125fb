"""Settings of the optimizer: the recipe's section `optimizer`, handed to the learner's engine as it is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vla_rl.section import Fraction, LearningRate, NonNegative, Section, Weight

Schedule = Literal["cosine", "linear", "constant"]


class AdamWSection(Section):
    """AdamW with separate learning rates for policy and value: linear warm-up, then cosine, linear or constant."""

    policy_lr: LearningRate = Field(1e-5, description="peak learning rate of the policy")
    value_lr: LearningRate = Field(1e-4, description="peak learning rate of the value head")
    policy_warmup: NonNegative = Field(0, description="optimizer steps of linear warm-up of policy_lr")
    value_warmup: NonNegative = Field(0, description="optimizer steps of linear warm-up of value_lr")
    schedule: Schedule = Field(
        "cosine", description="learning rates after the warm-up; cosine and linear fall until budget.optimizer_steps"
    )
    final_lr_fraction: Fraction = Field(0.0, description="fraction of the peak at which cosine and linear end")
    weight_decay: Weight = Field(0.0, description="decoupled weight decay")
    max_grad_norm: Annotated[float, Field(gt=0.0, le=1e12)] = Field(
        1.0, description="the gradient is clipped to this norm"
    )

    @property
    def policy_begins_at(self) -> int:
        """Return the optimizer steps before the policy's first: the value head is trained alone in them."""
        return 0

    def endless_warmups(self, total_steps: int) -> dict[str, int]:
        """Return the warm-ups, by field, that last until the end of a run of so many optimizer steps or longer.

        Nothing is left then for the schedule that follows; the constant one needs nothing.
        """
        left = {"policy_warmup": total_steps - self.policy_begins_at, "value_warmup": total_steps}
        if self.schedule == "constant":
            return {}
        return {field: getattr(self, field) for field, steps in left.items() if getattr(self, field) >= steps}


class OptimizerSection(AdamWSection):
    """AdamW of reinforcement learning, which may begin with the critic alone."""

    critic_only_steps: NonNegative = Field(
        0,
        description="first optimizer steps, which train only the value head; the policy's schedule starts after them",
    )

    @property
    def policy_begins_at(self) -> int:
        """Return the optimizer steps of the critic alone."""
        return self.critic_only_steps
