"""Recipes for tests: those that come with the program, one in a few lines, and what is wrong in a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_rl.recipe import (
    Problem,
    RecipeError,
    build_recipe,
    is_supervised,
)

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.y*ml"))
SUPERVISED = [path for path in SHIPPED if is_supervised(path)]
TOY = """
name: t
env: {name: toy}
policy: {name: mlp}
surrogate: {name: gipo, sigma: 0.5}
budget: {optimizer_steps: 10}
"""


def problems(text: str, *overrides: str) -> dict[str, Problem]:
    """The problems of a recipe by path; fails if there are none."""
    with pytest.raises(RecipeError) as raised:
        build_recipe(text, overrides)
    found = {problem.path: problem for problem in raised.value.problems}
    assert len(found) == len(raised.value.problems), "the same path was reported twice"
    for problem in found.values():
        assert str(problem).splitlines()[0] in str(raised.value)
    return found


LIBERO = "env={name: libero, suite: libero_spatial}"
VLA = "policy={name: openvla_oft}"
