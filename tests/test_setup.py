"""The setup: what of a recipe is not about learning, and how an evaluation changes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from vla_rl.recipe import RecipeError, Setup, build_recipe, change_setup, is_supervised, list_recipes, load_recipe

RECIPE = """
name: t
seed: 3
env: {name: toy, tasks: [0, 2]}
policy: {name: mlp, hidden_dim: 32}
surrogate: {name: gipo}
rollout: {num_workers: 2}
learner: {precision: bf16}
budget: {optimizer_steps: 10}
"""


def setup() -> Setup:
    return build_recipe(RECIPE).setup


def test_a_recipe_has_a_setup_and_nothing_of_the_algorithm_is_in_it() -> None:
    recipe, found = build_recipe(RECIPE), setup()
    assert set(Setup.model_fields) == {"seed", "env", "policy", "rollout", "runtime", "precision"}
    assert (found.seed, found.env, found.policy) == (3, recipe.env, recipe.policy)
    assert (found.rollout, found.runtime, found.precision) == (recipe.rollout, recipe.runtime, "bf16")


TRAININGS = {name: path for name, path in list_recipes().items() if not is_supervised(path)}


@pytest.mark.parametrize("path", TRAININGS.values(), ids=list(TRAININGS))
def test_the_setup_of_every_shipped_recipe_stands_alone(path: Path) -> None:
    found = load_recipe(path).setup
    assert Setup.model_validate(found.model_dump()) == found


def test_changed_values_are_checked_as_those_of_a_recipe_are() -> None:
    changed = change_setup(setup(), {("env", "tasks"): [5], ("rollout", "num_workers"): 1}, source="here")
    assert (changed.env.task_ids, changed.rollout.num_workers, changed.seed) == ([5], 1, 3)
    with pytest.raises(RecipeError) as raised:
        change_setup(setup(), {("env", "tasks"): [1, 1], ("rollout", "num_workers"): 0}, source="here")
    assert {problem.path for problem in raised.value.problems} == {"env.tasks", "rollout.num_workers"}
    assert str(raised.value).startswith("here: 2 problems")


def test_a_policy_that_sees_too_little_has_no_setup() -> None:
    libero = build_recipe(
        RECIPE, ["env={name: libero, suite: libero_goal}", "policy={name: openvla_oft}", "replay.segment_length=4"]
    ).setup
    with pytest.raises(ValidationError, match=r"no object is in it"):
        Setup(env=libero.env, policy=setup().policy)
    with pytest.raises(ValidationError, match=r"this environment gives states only"):
        Setup(env=setup().env, policy=libero.policy)
