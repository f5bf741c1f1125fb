"""Conversion of a recipe's algorithm sections to the settings that the learner takes."""

from __future__ import annotations

from vla_rl.learner.optimizer import OptimizerSettings
from vla_rl.recipe import Recipe


def optimizer_settings(recipe: Recipe) -> OptimizerSettings:
    """Learning rates of the recipe; cosine and linear end with the budget."""
    section = recipe.optimizer
    return OptimizerSettings(
        policy_lr=section.policy_lr,
        value_lr=section.value_lr,
        policy_warmup=section.policy_warmup,
        value_warmup=section.value_warmup,
        schedule=section.schedule,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        total_steps=recipe.budget.optimizer_steps,
        final_lr_fraction=section.final_lr_fraction,
        critic_only_steps=section.critic_only_steps,
    )
