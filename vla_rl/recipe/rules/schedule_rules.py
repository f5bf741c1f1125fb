"""Rules about the optimizer's schedule within the budget."""

from __future__ import annotations

from vla_rl.recipe.sections import OptimizerSteps
from vla_rl.rl.optimizer_section import AdamWSection
from vla_rl.section import Problem


def _critic_only_ends(optimizer: AdamWSection, budget: OptimizerSteps) -> Problem | None:
    steps = optimizer.policy_begins_at
    total = budget.optimizer_steps
    if steps >= total:
        return Problem(
            path="optimizer.critic_only_steps",
            rule="the policy must be trained after the critic, or it never is",
            found=f"{steps} with budget.optimizer_steps {total}",
            allowed=f"0..{total - 1}, or a larger budget.optimizer_steps",
        )
    return None


def _policy_warmup_ends(optimizer: AdamWSection, budget: OptimizerSteps) -> Problem | None:
    before = optimizer.policy_begins_at
    return _warmup_ends("policy_warmup", optimizer.policy_warmup, optimizer, budget, before=before)


def _value_warmup_ends(optimizer: AdamWSection, budget: OptimizerSteps) -> Problem | None:
    return _warmup_ends("value_warmup", optimizer.value_warmup, optimizer, budget)


def _warmup_ends(
    field: str, warmup: int, optimizer: AdamWSection, budget: OptimizerSteps, *, before: int = 0
) -> Problem | None:
    """Check a warm-up that begins after the first `before` optimizer steps."""
    total = budget.optimizer_steps - before
    if optimizer.schedule != "constant" and warmup >= total > 0:
        after = f" after optimizer.critic_only_steps {before}" if before else ""
        return Problem(
            path=f"optimizer.{field}",
            rule=f"the warm-up must end before the run, or the {optimizer.schedule} schedule never begins",
            found=f"{warmup}{after} with budget.optimizer_steps {budget.optimizer_steps}",
            allowed=f"0..{total - 1}, a larger budget.optimizer_steps, or optimizer.schedule 'constant'",
        )
    return None


SHARED = (_policy_warmup_ends, _value_warmup_ends)  # also of recipes of the supervised stage
RULES = (_critic_only_ends, *SHARED)
