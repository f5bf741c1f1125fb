"""Generalised advantage estimation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vla_rl.credit.base import TIME_LIMIT, VALUES, Credit, Experience, Targets, ValueSource
from vla_rl.section import Fraction, TimeLimit


class Gae(Credit):
    """Generalised advantage estimation."""

    name: Literal["gae"]
    discount: Fraction = Field(0.99, description="discount per decision")
    gae_lambda: Fraction = Field(0.95, description="1: Monte-Carlo return; 0: one step, then the value")
    time_limit: TimeLimit | None = TIME_LIMIT
    values: ValueSource = VALUES

    def assign(self, experience: Experience) -> Targets:
        """Return A of `vla_rl.rl.targets.gae`, and A + V as the critic's target."""
        from vla_rl.rl.targets import gae

        values = experience.values[:, :-1]
        advantages = gae(
            experience.rewards,
            values,
            experience.values[:, 1:],
            experience.terminated,
            experience.truncated,
            discount=self.discount,
            gae_lambda=self.gae_lambda,
            time_limit=self.horizon,
        )
        return Targets(value_targets=advantages + values, advantages=advantages)
