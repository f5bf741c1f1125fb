"""The recipe's temperature is the policy's own: whoever acts or learns with it is told nothing."""

from __future__ import annotations

import pytest

from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.run.plan import plan_policy
from vla_rl.types import TaskInfo


@pytest.mark.parametrize("name", ["toy", "quickstart"])
def test_the_policy_is_built_with_the_temperature_of_the_recipe(name: str) -> None:
    recipe = load_recipe(find_recipe(name), ["rollout.temperature=1.7"])
    plan = plan_policy(recipe.setup, tasks=[TaskInfo("libero_spatial", 0, "name", "pick up the bowl")])
    assert plan.build(device="cpu", empty=True).temperature == 1.7
