"""Rules about what a regime sets."""

from __future__ import annotations

from vla_rl.recipe.regimes import STALE_REUSE, RegimeName, regime_of
from vla_rl.recipe.sections import BudgetSection, LearnerSection, ReplaySection
from vla_rl.section import Problem


def _regime_sets_ratio(
    regime: RegimeName | None, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection
) -> Problem | None:
    return None if regime is None else _as_meant("replay_ratio", regime, replay, learner, budget)


def _regime_sets_threshold(
    regime: RegimeName | None, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection
) -> Problem | None:
    return None if regime is None else _as_meant("old_threshold", regime, replay, learner, budget)


def _as_meant(
    field: str, regime: RegimeName, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection
) -> Problem | None:
    found, allowed = getattr(replay, field), getattr(regime_of(regime, replay, learner, budget), field)
    if field not in replay.model_fields_set or found == allowed:
        return None
    return Problem(
        path=f"replay.{field}",
        rule=f"regime '{regime}' sets it from the capacity, the batch and the budget",
        found=str(found),
        allowed=f"{allowed}, or any with regime=null",  # a resumed run cannot leave it out: its recipe has it
    )


def _stale_reuses(
    regime: RegimeName | None, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection
) -> Problem | None:
    if regime != "stale":
        return None
    reuse = regime_of(regime, replay, learner, budget).replay_ratio
    if reuse >= STALE_REUSE:
        return None
    return Problem(
        path="regime",
        rule="stale means that old data is used tens of times",
        found=f"{reuse:g} times",
        allowed="a larger budget.optimizer_steps or batch, or a smaller replay.capacity",
    )


RULES = (_regime_sets_ratio, _regime_sets_threshold, _stale_reuses)
