"""Recipe: strict models of everything that defines a run, and loading them from a file.

Only the top of the program (`run`, `train`, `sft`, `evaluation`, `export`, `sharing`, `studies`, `cli`) sees these
models; below it functions take plain arguments. A recipe is YAML; `key.sub=value` overrides are applied before
validation, and all errors are reported at once.
"""

from __future__ import annotations

from vla_rl.envs.kinds import EnvSection
from vla_rl.recipe.library import find_recipe, is_path, list_recipes
from vla_rl.recipe.loading import (
    EARLIER_TIME_LIMIT,
    build_recipe,
    build_supervised_recipe,
    change_setup,
    is_supervised,
    load_any_recipe,
    load_recipe,
    load_recorded_recipe,
    load_supervised_recipe,
    recorded_time_limit,
)
from vla_rl.recipe.model import Recipe
from vla_rl.recipe.problems import RecipeError
from vla_rl.recipe.reference import FieldReference, field_references
from vla_rl.recipe.sections import (
    BudgetSection,
    CheckpointSection,
    EvaluationSection,
    LearnerSection,
    LoggingSection,
    OptimizerSteps,
    ReplaySection,
    RolloutSection,
    RuntimeSection,
)
from vla_rl.recipe.setup import Setup
from vla_rl.recipe.sizes import decisions_per_episode
from vla_rl.recipe.supervised import SupervisedRecipe
from vla_rl.section import Problem, Section

__all__ = [
    "EARLIER_TIME_LIMIT",
    "BudgetSection",
    "CheckpointSection",
    "EnvSection",
    "EvaluationSection",
    "FieldReference",
    "LearnerSection",
    "LoggingSection",
    "OptimizerSteps",
    "Problem",
    "Recipe",
    "RecipeError",
    "ReplaySection",
    "RolloutSection",
    "RuntimeSection",
    "Section",
    "Setup",
    "SupervisedRecipe",
    "build_recipe",
    "build_supervised_recipe",
    "change_setup",
    "decisions_per_episode",
    "field_references",
    "find_recipe",
    "is_path",
    "is_supervised",
    "list_recipes",
    "load_any_recipe",
    "load_recipe",
    "load_recorded_recipe",
    "load_supervised_recipe",
    "recorded_time_limit",
]
