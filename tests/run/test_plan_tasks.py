"""A policy can be planned where LIBERO is not installed."""

from __future__ import annotations

import pytest

from vla_rl.envs.libero import suites
from vla_rl.errors import SimulatorError
from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.run.plan import plan_policy
from vla_rl.types import TaskInfo


def test_with_tasks_given_nobody_asks_libero_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(suite: str) -> tuple[str, ...]:
        raise SimulatorError("hf-libero is not installed")

    monkeypatch.setattr(suites, "task_names", absent)
    recipe = load_recipe(find_recipe("libero_spatial_gipo"), ["policy.checkpoint=tiny"])
    with pytest.raises(SimulatorError):
        plan_policy(recipe.setup)
    tasks = [TaskInfo("libero_spatial", number, "name", f"fetch bowl {number}") for number in range(2)]
    plan = plan_policy(recipe.setup, tasks=tasks)
    prompts = plan.build(device="cpu").prompt_ids
    assert prompts.shape[0] == 2 and not (prompts[0] == prompts[1]).all()  # one for each text
