"""From a recipe's algorithm sections to the functions and plain settings that the learner takes."""

from __future__ import annotations

import functools

from vla_rl.learner.optimizer import OptimizerSettings
from vla_rl.learner.settings import LossSettings
from vla_rl.recipe import PpoSection, Recipe
from vla_rl.rl.multipliers import LOG_MULTIPLIERS, LogMultiplier
from vla_rl.rl.surrogates import SURROGATES, Surrogate

REPORTED_CLIP = 0.2  # ratios outside 1 ± this count as clipped for surrogates that do not clip


def bind_surrogate(recipe: Recipe) -> tuple[Surrogate, LogMultiplier]:
    """The recipe's surrogate and its log-multiplier, settings bound once."""
    settings = recipe.surrogate.model_dump(exclude={"name"})
    name = recipe.surrogate.name
    return functools.partial(SURROGATES[name], **settings), functools.partial(LOG_MULTIPLIERS[name], **settings)


def loss_settings(recipe: Recipe) -> LossSettings:
    """Coefficients of the recipe."""
    section = recipe.loss
    return LossSettings(
        value_coefficient=section.value_coefficient,
        entropy_coefficient=section.entropy_coefficient,
        kl_coefficient=section.kl_coefficient,
        normalize_advantages=section.normalize_advantages,
        running_moments=section.advantage_moments == "running",
        joint_ratio=section.ratio == "joint",
    )


def optimizer_settings(recipe: Recipe) -> OptimizerSettings:
    """Learning rates of the recipe; the cosine ends with the budget."""
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
    )


def clip_range(recipe: Recipe) -> tuple[float, float]:
    """Below 1 − first and above 1 + second a ratio counts in `learner/clip_fraction`."""
    section = recipe.surrogate
    return (section.clip_low, section.clip_high) if isinstance(section, PpoSection) else (REPORTED_CLIP, REPORTED_CLIP)
