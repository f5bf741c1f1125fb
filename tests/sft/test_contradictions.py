"""Values of a recipe that would have no effect: no run begins with them, and one that did before continues."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from sft_demos import RECIPE, write_demos

from vla_rl import train
from vla_rl.recipe import RecipeError, build_supervised_recipe, find_recipe, load_recipe
from vla_rl.recipe.supervised import SupervisedRecipe
from vla_rl.sft import stage
from vla_rl.sft.plan import make_supervised_plan


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_demos(tmp_path_factory.mktemp("data") / "toys")


@pytest.fixture(scope="module")
def checkpoints(data: Path, tmp_path_factory) -> dict[bool, str]:
    """Checkpoint directories with and without a projector of proprioception."""
    made = {}
    for proprio in (False, True):
        recipe = build_supervised_recipe(
            RECIPE.format(path=data), [f"policy.proprio={proprio}", "budget.optimizer_steps=1"]
        )
        done = stage.supervise(
            recipe, run_dir=tmp_path_factory.mktemp("run") / "run", resume=False, console=Console(quiet=True)
        )
        assert done is not None
        made[proprio] = str(done.policy)
    return made


def supervised(data: Path, checkpoint: str, *overrides: str) -> SupervisedRecipe:
    image_size = "28" if checkpoint == "tiny" else "null"
    chosen = [f"policy.checkpoint={checkpoint}", f"policy.image_size={image_size}", "budget.optimizer_steps=1"]
    return build_supervised_recipe(RECIPE.format(path=data), [*chosen, *overrides])


@pytest.mark.parametrize(
    ("has_projector", "overrides", "told"),
    [
        (False, ["policy.proprio=true"], r"true, and .*policy has no proprio_projector file"),
        (True, ["policy.proprio=false"], r"false, and .*policy has a proprio_projector file"),
        (False, ["policy.proprio=false", "demos.add_proprio=true"], "false with demos.add_proprio=true"),
        (True, ["policy.proprio=false", "demos.add_proprio=true"], "false with demos.add_proprio=true"),
        (None, ["policy.proprio=false", "demos.add_proprio=true"], "false with demos.add_proprio=true"),
        (False, ["policy.train_proprio_projector=false", "demos.add_proprio=true"], "new projector has random weights"),
        (None, ["policy.value_head=none", "loss.value_coefficient=0.5"], "there is no critic to train"),
    ],
)
def test_no_supervised_run_begins_with_a_value_without_effect(
    data: Path, checkpoints: dict[bool, str], has_projector: bool | None, overrides: list[str], told: str
) -> None:
    recipe = supervised(data, "tiny" if has_projector is None else checkpoints[has_projector], *overrides)
    with pytest.raises(RecipeError, match=told) as refused:
        stage.dry_run(recipe)
    (problem,) = refused.value.problems
    assert problem.path == overrides[0].partition("=")[0] or "no critic" in told
    stage.dry_run(recipe, resume=True)


@pytest.mark.parametrize(
    ("has_projector", "overrides", "fed"),
    [
        (False, [], "no proprioception"),
        (False, ["policy.proprio=false"], "no proprioception"),
        (False, ["demos.add_proprio=true"], "proprioception by a new projector"),
        (False, ["policy.proprio=true", "demos.add_proprio=true"], "proprioception by a new projector"),
        (True, ["policy.proprio=true"], "proprioception"),
        (True, ["demos.add_proprio=true"], "proprioception"),
        (None, [], "proprioception"),
        (None, ["policy.proprio=false"], "no proprioception"),
    ],
)
def test_the_dry_run_tells_whether_the_policy_is_fed_proprioception(
    data: Path, checkpoints: dict[bool, str], has_projector: bool | None, overrides: list[str], fed: str
) -> None:
    recipe = supervised(data, "tiny" if has_projector is None else checkpoints[has_projector], *overrides)
    assert f"by transform oft, {fed}, statistics" in str(stage.dry_run(recipe))
    projector = make_supervised_plan(recipe).policy.build(device="cpu", empty=True).model.proprio_projector
    assert (projector is None) == (fed == "no proprioception")


def test_the_fixes_that_are_told_work_when_typed(data: Path, checkpoints: dict[bool, str]) -> None:
    refused = (checkpoints[False], "policy.proprio=true")
    with pytest.raises(RecipeError, match=r"add policy\.proprio=null; .*: demos\.add_proprio=true"):
        stage.dry_run(supervised(data, *refused))
    for fix in ("policy.proprio=null", "demos.add_proprio=true"):
        stage.dry_run(supervised(data, *refused, fix))


def test_a_run_that_began_with_such_a_value_continues_and_says_so(
    data: Path, checkpoints: dict[bool, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recipes of runs from before have `proprio: true`, which was the default and said nothing about a checkpoint."""
    folder = tmp_path / "run"
    stage.supervise(supervised(data, checkpoints[False]), run_dir=folder, resume=False, console=Console(quiet=True))
    earlier = supervised(data, checkpoints[False], "policy.proprio=true", "budget.optimizer_steps=2")
    console = Console(width=500)
    with pytest.raises(RecipeError):
        stage.supervise(earlier, run_dir=tmp_path / "new", resume=False, console=console)
    assert not (tmp_path / "new").exists()
    done = stage.supervise(earlier, run_dir=folder, resume=True, console=console)
    assert done is not None
    assert done.optimizer_steps == 2
    assert (
        "warning: policy.proprio has no effect: a checkpoint is fed proprioception only if" in capsys.readouterr().out
    )


@pytest.mark.libero
def test_no_training_begins_with_a_value_without_effect(checkpoints: dict[bool, str], tmp_path: Path) -> None:
    chosen = [f"policy.checkpoint={checkpoints[False]}", "policy.image_size=null", "policy.statistics=toys"]
    recipe = load_recipe(find_recipe("libero_tiny_gipo"), [*chosen, "policy.proprio=true"])
    with pytest.raises(RecipeError, match=r"policy\.proprio: a checkpoint .*\n.*no proprio_projector file"):
        train.dry_run(recipe)
    with pytest.raises(RecipeError, match=r"policy\.proprio"):
        train.train(recipe, run_dir=tmp_path / "run", resume=False, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()
    train.dry_run(recipe, resume=True)
