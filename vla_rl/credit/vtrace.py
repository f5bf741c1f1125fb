"""V-trace: targets that correct for policy changes since acting."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vla_rl.credit.base import TIME_LIMIT, VALUES, Credit, Experience, Targets, ValueSource
from vla_rl.section import Fraction, Scale, TimeLimit


class Vtrace(Credit):
    """V-trace targets; the surrogate applies the ratio."""

    name: Literal["vtrace"]
    discount: Fraction = Field(0.99, description="discount per decision")
    lambda_: Fraction = Field(1.0, alias="lambda", description="weight of the later corrections")
    rho_bar: Scale = Field(1.0, description="bound of the ratio in the temporal difference")
    c_bar: Scale = Field(1.0, description="bound of the ratio in the trace")
    time_limit: TimeLimit | None = TIME_LIMIT
    values: ValueSource = VALUES

    @property
    def needs_log_ratios(self) -> bool:
        """Return True: temporal differences and traces are capped by the ratios of whole decisions."""
        return True

    def assign(self, experience: Experience) -> Targets:
        """Return the targets and advantages of `vla_rl.rl.targets.vtrace`."""
        from vla_rl.rl.targets import vtrace

        result = vtrace(
            experience.rewards,
            experience.values[:, :-1],
            experience.values[:, 1:],
            experience.terminated,
            experience.truncated,
            experience.log_ratios,
            discount=self.discount,
            lambda_=self.lambda_,
            rho_bar=self.rho_bar,
            c_bar=self.c_bar,
            time_limit=self.horizon,
        )
        return Targets(value_targets=result.value_targets, advantages=result.advantages)
