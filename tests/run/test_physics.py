"""What becomes of `env.physics` between the recipe and the simulator."""

import pytest

from vla_rl.recipe import Recipe
from vla_rl.run.plan import make_plan

pytestmark = pytest.mark.libero


def plan(physics):
    env = {"name": "libero", "suite": "libero_spatial", "tasks": [0], "assets": "proxy", "physics": physics}
    values = {
        "name": "physics",
        "env": env,
        "policy": {"name": "openvla_oft", "image_size": 56},
        "surrogate": {"name": "gipo"},
        "budget": {"optimizer_steps": 1},
        "runtime": {"device": "cpu"},
    }
    return make_plan(Recipe.model_validate(values).setup)


def test_the_simulator_is_built_with_the_recipes_physics_and_the_manifest_names_what_is_not_exact():
    fast, exact = plan("fast"), plan("exact")
    assert fast.env.builders[0].keywords["physics"] == "fast"
    assert exact.env.builders[0].keywords["physics"] == "exact"
    assert any("fast physics" in deviation for deviation in fast.env.deviations)
    assert not any("physics" in deviation for deviation in exact.env.deviations)
