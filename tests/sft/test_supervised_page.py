"""The commands of the page about the supervised stage are ones that the program takes."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.recipe import find_recipe, is_supervised, load_any_recipe

PAGE = Path(__file__).parents[2] / "docs" / "supervised.md"


def test_the_page_s_recipes_exist_are_of_the_verb_and_take_the_overrides() -> None:
    lines = re.findall(r"^vla-rl (sft|train) (\S+)((?: [a-z.]+=\S+)*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    named = [line for line in lines if "/" not in line[1]]
    assert {verb for verb, _, _ in named} == {"sft", "train"}
    for verb, recipe, overrides in named:
        assert is_supervised(find_recipe(recipe)) == (verb == "sft")
        load_any_recipe(find_recipe(recipe), overrides.split())


def test_the_verbs_send_each_other_s_recipes_to_the_right_one() -> None:
    for verb, recipe, right in (("train", "libero_sft_tiny", "sft"), ("sft", "toy", "train")):
        result = CliRunner().invoke(app, [verb, recipe, "--dry-run"])
        assert result.exit_code == 2
        assert f"Use `vla-rl {right} {recipe}`" in result.output


def test_the_fields_of_both_kinds_of_recipes_are_listed() -> None:
    supervised = CliRunner().invoke(app, ["recipes", "fields", "demos", "--sft"])
    assert "demos.held_out" in supervised.output
    assert CliRunner().invoke(app, ["recipes", "fields", "demos"]).exit_code == 2
