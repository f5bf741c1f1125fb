"""Recipes that come with the program: each is valid, found by its name and says what it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from recipe_texts import ROOT, SHIPPED, SUPERVISED, TOY

from vla_rl.errors import UserError
from vla_rl.policies.openvla_oft.hub import is_hub_id
from vla_rl.recipe import (
    find_recipe,
    list_recipes,
    load_any_recipe,
    load_recipe,
)

BASES = sorted((ROOT / "recipes" / "bases").glob("*.y*ml"))


def test_the_shipped_recipes_are_found() -> None:
    names = {str(path.relative_to(ROOT / "recipes").with_suffix("")) for path in SHIPPED}
    paper = {f"libero_{s}_{loss}" for s in ("spatial", "object", "goal", "10") for loss in ("gipo", "ppo", "sapo")}
    assert len(paper) == 12
    assert {"quickstart", "toy", *paper} <= names
    assert {path.stem for path in SUPERVISED} == {"libero_sft_tiny", "libero_sft_7b"}
    assert set(list_recipes()) == names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_and_bears_the_name_of_its_file(path: Path) -> None:
    recipe = load_any_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_opens_with_hardware_values_command_and_override(path: Path) -> None:
    head = path.read_text(encoding="utf-8").split("\nname:")[0]
    assert ("\nbase:" in head) == ("# Values:    bases/" in head)
    for title in ("# Hardware:", "# Values:", "# Command:", "# Override:"):
        assert title in head
    commands = [line.split(":", 1)[1].split() for line in head.splitlines() if line.startswith(("# Command", "# Over"))]
    for program, verb, name, *overrides in commands:
        stage = "sft" if path in SUPERVISED else "train"
        assert (program, verb, find_recipe(name)) == ("vla-rl", stage, path)
        load_any_recipe(path, overrides)


def test_the_paper_s_recipe_consumes_252_decisions_per_optimizer_step() -> None:
    recipe = load_recipe(ROOT / "recipes" / "libero_spatial_gipo.yaml")
    assert recipe.learner.micro_batch * recipe.learner.accumulation * recipe.replay.segment_length == 252
    assert (recipe.optimizer.policy_lr, recipe.optimizer.value_lr) == (1e-5, 1e-4)


def test_a_recipe_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(TOY, encoding="utf-8")
    assert find_recipe(str(own)) == own
    assert find_recipe("toy") == ROOT / "recipes" / "toy.yaml"
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        find_recipe("quikstart.yaml")


def test_nothing_in_the_current_directory_hides_a_shipped_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy").mkdir()
    Path("quickstart").write_text(TOY, encoding="utf-8")
    assert find_recipe("toy") == ROOT / "recipes" / "toy.yaml"
    assert find_recipe("quickstart") == ROOT / "recipes" / "quickstart.yaml"
    assert find_recipe("./quickstart") == Path("quickstart")
    with pytest.raises(UserError, match="it is a folder; give the file of a recipe"):
        find_recipe("./toy")
    Path("toy/recipe.yaml").write_text(TOY, encoding="utf-8")
    with pytest.raises(UserError, match=r"a folder of a run, whose recipe is toy/recipe\.yaml"):
        find_recipe("toy/")


def test_a_bare_name_that_is_only_here_is_answered_with_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text(TOY, encoding="utf-8")
    Path("ours").mkdir()
    with pytest.raises(UserError, match=r"for the file of that name here write \./mine$"):
        find_recipe("mine")
    assert load_recipe(find_recipe("./mine")).name == "t"
    with pytest.raises(UserError, match=r"for the folder of that name here write \./ours$"):
        find_recipe("ours")


@pytest.mark.parametrize("name", ["", "x" * 5000, "x" * 5000 + "/y", "./" + "x" * 300])
def test_a_name_that_no_file_can_have_is_an_error_of_the_user(name: str) -> None:
    with pytest.raises(UserError, match="recipe "):
        find_recipe(name)


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.stem)
def test_a_base_that_comes_with_the_program_is_no_recipe_by_itself(path: Path) -> None:
    assert path.stem not in list_recipes()
    with pytest.raises(UserError, match=f"it is a base, .* write a file with `base: {path.stem}`"):
        find_recipe(path.stem)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_checkpoint_that_a_recipe_leaves_to_its_user_is_not_taken_for_one_of_the_hub(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id(getattr(load_any_recipe(path).policy, "checkpoint", "tiny"))


def test_a_recipe_is_loaded_without_torch_or_a_simulator() -> None:
    """Validation, `recipes show` and `--help` are quick, and work where neither is installed."""
    code = (
        "import sys\n"
        "from vla_rl.recipe import field_references, find_recipe, list_recipes, load_recipe\n"
        "names = list_recipes()\n"
        "assert names and field_references()\n"
        "load_recipe(find_recipe('toy'), ['surrogate.name=sapo'])\n"
        "load_recipe(find_recipe('libero_spatial_ppo'))\n"
        "print(sorted({'torch', 'mujoco', 'robosuite', 'libero', 'transformers'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
