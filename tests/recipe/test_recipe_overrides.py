"""Overrides of the command line, and bases that a file is laid over."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from recipe_texts import ROOT, TOY, problems

from vla_rl.credit import Vtrace
from vla_rl.recipe import (
    Problem,
    Recipe,
    RecipeError,
    build_recipe,
    find_recipe,
    is_supervised,
    load_any_recipe,
    load_recipe,
)
from vla_rl.recipe.dialect import parse
from vla_rl.rl.surrogates import Sapo


def test_overrides_reach_missing_sections_and_the_last_one_wins() -> None:
    recipe = build_recipe(TOY, ["replay.capacity=64", "env.tasks=[0,1]", "replay.capacity=128", "description=a=b"])
    assert (recipe.replay.capacity, recipe.env.task_ids, recipe.description) == (128, [0, 1], "a=b")


def test_another_kind_drops_what_only_the_former_knew() -> None:
    text = TOY.replace("{name: toy}", "{name: toy, horizon: 40, chunk_size: 4}")
    recipe = build_recipe(text, ["surrogate.tau_pos=3.0", "surrogate.name=sapo"])
    assert recipe.surrogate == Sapo(name="sapo", tau_pos=3.0)
    found = problems(text, "env.name=libero")
    assert "env.chunk_size" not in found  # the toy's alone: dropped
    assert "env.suite" in found
    assert "env.horizon" not in found  # both kinds know it: kept


def test_an_override_for_the_former_kind_is_an_error_in_any_order() -> None:
    for overrides in (["surrogate.sigma=2", "surrogate.name=ppo"], ["surrogate.name=ppo", "surrogate.sigma=2"]):
        assert set(problems(TOY, *overrides)) == {"surrogate.sigma"}


def test_another_kind_does_not_hide_a_misspelt_key() -> None:
    assert set(problems(TOY.replace("sigma", "sgima"), "surrogate.name=ppo")) == {"surrogate.sgima"}


def test_a_field_of_a_section_that_is_left_out_needs_no_name() -> None:
    assert build_recipe(TOY, ["targets.discount=0.5"]).targets.discount == 0.5
    assert problems(TOY.replace("surrogate: {name: gipo, sigma: 0.5}\n", ""), "surrogate.sigma=1").keys() == {
        "surrogate.name"
    }


def test_a_default_section_changes_its_kind() -> None:
    assert build_recipe(TOY, ["targets.name=vtrace", "targets.lambda=0.5"]).targets == Vtrace.model_validate(
        {"name": "vtrace", "lambda": 0.5, "time_limit": "end"}
    )


def laid_over(folder: Path, base: str, own: str, *overrides: str) -> Recipe:
    """A recipe of two files in one folder."""
    (folder / "base.yaml").write_text(base, encoding="utf-8")
    (folder / "own.yaml").write_text(f"base: ./base.yaml\n{own}", encoding="utf-8")
    return load_recipe(folder / "own.yaml", overrides)


def base_problems(folder: Path, base: str, own: str, *overrides: str) -> dict[str, Problem]:
    with pytest.raises(RecipeError) as raised:
        laid_over(folder, base, own, *overrides)
    assert str(raised.value).startswith(f"{folder / 'own.yaml'}: ")
    return {problem.path: problem for problem in raised.value.problems}


def test_a_file_with_a_base_holds_what_differs(tmp_path: Path) -> None:
    recipe = laid_over(tmp_path, TOY, "name: mine\nenv: {tasks: [0, 1]}\nsurrogate: {sigma: 2}", "seed=3")
    assert recipe == build_recipe(TOY, ["name=mine", "env.tasks=[0, 1]", "surrogate.sigma=2", "seed=3"])
    assert build_recipe(recipe.dump_yaml()) == recipe  # a dump is whole
    assert "base" not in parse(recipe.dump_yaml()).data


@pytest.mark.parametrize(
    ("own", "overrides"),
    [
        ("surrogate: {name: ppo, clip_low: 0.1}", ["surrogate.name=ppo", "surrogate.clip_low=0.1"]),
        ("env: {name: metaworld}\n", ["env.name=metaworld"]),  # brings its own time limit and drops the toy's chunks
        ("env: {name: metaworld}\ntargets: {time_limit: end}", ["env.name=metaworld", "targets.time_limit=end"]),
        ("replay: {}\nlogging: {}", []),
        ("targets: {discount: 0.5}", ["targets.discount=0.5"]),
    ],
)
def test_what_is_laid_over_a_base_counts_as_overrides_do(tmp_path: Path, own: str, overrides: list[str]) -> None:
    base = TOY.replace("{name: toy}", "{name: toy, chunk_size: 4}") + "replay: {capacity: 100, segment_length: 2}\n"
    base += "targets: {name: gae, time_limit: end}"
    assert laid_over(tmp_path, base, own) == build_recipe(base, overrides)


def test_what_only_the_former_kind_knew_is_an_error_where_the_file_itself_says_it(tmp_path: Path) -> None:
    found = base_problems(tmp_path, TOY, "surrogate: {name: ppo, sigma: 2}")
    assert set(found) == {"surrogate.sigma"}
    assert found["surrogate.sigma"].place == "line 2"


def test_a_base_need_not_be_whole(tmp_path: Path) -> None:
    recipe = laid_over(tmp_path, "loss: {kl_coefficient: 0.5}", TOY)
    assert recipe.loss.kl_coefficient == 0.5


@pytest.mark.parametrize(
    ("base", "expected"), [("libero_sft_tiny", True), ("./mine.yaml", True), ("toy", False), ("nothing", False)]
)
def test_the_base_of_a_file_says_its_stage_too(tmp_path: Path, base: str, *, expected: bool) -> None:
    (tmp_path / "mine.yaml").write_text("demos: {path: demos}", encoding="utf-8")
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {base}\nname: own", encoding="utf-8")
    assert is_supervised(own) == expected
    if base == "libero_sft_tiny":
        assert load_any_recipe(own).name == "own"


def test_a_base_is_found_by_name_wherever_the_file_lies(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("base: toy\nname: mine", encoding="utf-8")
    assert load_recipe(own) == load_recipe(find_recipe("toy"), ["name=mine"])


def test_faults_are_told_with_the_file_and_the_line_that_they_stand_in(tmp_path: Path) -> None:
    found = base_problems(
        tmp_path,
        TOY + "replay: {capacity: none, capcity: 3}\nseed: 1\nseed: 2\nlearner: 5\nloss: 5",
        "optimizer:\n  policy_lr: fast\nloss: {ratio: joint}",  # in place of what is not a section
        "logging.recent_episodes=0",
    )
    of_base = f" of {tmp_path / 'base.yaml'}"
    assert {path: problem.place for path, problem in found.items()} == {
        "replay.capacity": f"line 7{of_base}",
        "replay.capcity": f"line 7{of_base}",
        "seed": f"line 9{of_base}",
        "learner": f"line 10{of_base}",
        "optimizer.policy_lr": "line 3",
        "logging.recent_episodes": "logging.recent_episodes=0",
    }


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("base: nothing", "none of that name comes with the program; known names: libero_7b, "),
        ("base: toi", "did you mean 'toy'?"),
        ("base: ./nothing.yaml", "No such file"),
        ("base: ../", "is a folder"),
        ("base: own.yaml", "a recipe cannot be its own base"),
        ("base: libero_spatial_gipo", "and that of {recipes}/libero_spatial_gipo.yaml is 'libero_7b'"),
        ("base: circle.yaml", "and that of {here}/circle.yaml is 'own.yaml'"),
        ("base: [toy]", "wrong type"),
        ("base:", "null (nothing written)"),
        ("base: broken.yaml", "broken.yaml: not readable as YAML: line 1"),
        ("base: list.yaml", "list.yaml: a recipe is a YAML mapping of sections (found list)"),
    ],
)
def test_what_cannot_be_a_base_is_one_clear_error(tmp_path: Path, own: str, said: str) -> None:
    (tmp_path / "circle.yaml").write_text("base: own.yaml", encoding="utf-8")
    (tmp_path / "broken.yaml").write_text("a: [1", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    (tmp_path / "own.yaml").write_text(f"name: x\n{own}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        load_recipe(tmp_path / "own.yaml")
    (problem,) = raised.value.problems
    assert (problem.path, problem.place) == ("base", "line 2")
    assert said.format(recipes=ROOT / "recipes", here=tmp_path) in str(problem)


def test_a_base_is_chosen_in_the_file_and_not_on_the_command_line() -> None:
    assert problems(TOY, "base=libero_7b")["base"].place == "base=libero_7b"


def test_the_list_that_a_message_shows_is_one_word_on_the_command_line() -> None:
    shown = problems(TOY, "env.tasks=0,1")["env.tasks"].allowed.partition("a list, like ")[2]
    (override,) = shlex.split(f"env.tasks={shown}")
    assert build_recipe(TOY, [override]).env.task_ids == [0, 1]


@pytest.mark.parametrize("override", ["x", "=1", ".seed=1", "env.=1", "seed=[", "seed={a: 1, a: 2}", "name.x=1"])
def test_an_override_that_cannot_be_applied_is_a_problem(override: str) -> None:
    with pytest.raises(RecipeError) as raised:
        build_recipe(TOY, [override])
    assert override in str(raised.value)
