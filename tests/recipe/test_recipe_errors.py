"""What is wrong in a recipe is told at once, with its place and what was meant."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_texts import ROOT, TOY, problems

from vla_rl.errors import UserError
from vla_rl.recipe import (
    RecipeError,
    build_recipe,
    find_recipe,
    load_recipe,
)
from vla_rl.recipe.shape import homes, kinds

KEYS = sorted(homes())


def test_all_problems_are_told_at_once_with_their_places() -> None:
    found = problems(
        TOY.replace("optimizer_steps", "optimizer_step") + "optimizer: {policy_lr: fast}\nreplay: {capacity: 8}\n",
        "learner.micro_batch=0",
        "nonsense",
    )
    assert set(found) == {
        "nonsense",
        "budget.optimizer_step",
        "budget.optimizer_steps",
        "optimizer.policy_lr",
        "learner.micro_batch",
        "replay.min_decisions",  # a rule across fields, though other sections are wrong
    }
    assert found["optimizer.policy_lr"].place == "line 7"
    assert found["optimizer.policy_lr"].found == "'fast'"
    assert found["learner.micro_batch"].place == "learner.micro_batch=0"
    assert found["learner.micro_batch"].allowed == "at least 1"
    assert found["budget.optimizer_step"].hint == "did you mean 'optimizer_steps'?"


def test_two_fields_that_break_one_rule_are_two_problems_each_with_what_it_allows() -> None:
    found = problems(TOY, "checkpoint.keep_best=true", "budget.stop_at_success=0.9")
    of_evaluations = "or a number of optimizer steps as evaluation.every_optimizer_steps"
    assert {path: problem.allowed for path, problem in found.items()} == {
        "checkpoint.keep_best": f"false, {of_evaluations}",
        "budget.stop_at_success": f"null, {of_evaluations}",
    }


def test_a_section_that_only_overrides_name_is_told_with_the_first_of_them() -> None:
    assert problems(TOY, "seed=3", "optimzer.policy_lr=1", "optimzer.value_lr=1")["optimzer"].place == (
        "optimzer.policy_lr=1"
    )


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("replay.capcity=5", "did you mean 'capacity'?"),
        ("optimizer.replay_ratio=5", "the key exists as replay.replay_ratio"),
        ("sigma=5", "the key exists as surrogate.sigma"),
        ("surrogate.tau_pos=0.2", "it is a key of surrogate.name sapo"),
        ("surrogate.clip_low=0.2", "it is a key of surrogate.name ppo and decoupled_ppo"),
        ("optimzer={}", "did you mean 'optimizer'?"),
        ("policy_lrr=1", "did you mean optimizer.policy_lr?"),
    ],
)
def test_a_misspelt_or_misplaced_key_is_answered_with_the_one_that_was_meant(override: str, hint: str) -> None:
    assert problems(TOY, override)[override.split("=")[0]].hint == hint


def test_a_misspelt_value_is_answered_with_the_one_that_was_meant() -> None:
    assert (
        problems(TOY, "env={name: libero, suite: libero_spatail}")["env.suite"].hint == "did you mean 'libero_spatial'?"
    )


def test_a_misspelt_kind_lists_the_kinds() -> None:
    found = problems(TOY, "surrogate.name=gippo")["surrogate.name"]
    assert found.allowed.split(", ")[:4] == ["gipo", "ppo", "sapo", "no_clip"]
    assert found.allowed.split(", ") == list(kinds(("surrogate",)))
    assert found.hint == "did you mean 'gipo'?"
    assert found.place == "surrogate.name=gippo"
    missing = problems(TOY.replace("{name: toy}", "{}"))["env.name"]
    assert missing.rule == "this key is required"
    assert missing.allowed.split(", ")[:2] == ["libero", "toy"]


def test_a_key_that_stands_twice_is_refused_with_both_lines() -> None:
    found = problems(TOY + "replay:\n  capacity: 64\n  segment_length: 2\n  capacity: 65\n")["replay.capacity"]
    assert (found.hint, found.place) == ("first on line 8", "line 10")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing"),
        ("- 1", "list"),
        ("just text", "str"),
        ("a: [1", "line 1"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("a: &x 1\nb: *x", "line 2: aliases are not allowed"),
        ("a: !!python/object:os.system {}", "tags are not allowed"),
        ("a: !!timestamp x", "tags are not allowed"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "9" * 5000, "integer"),
        ("a:\tb: c", "line 1"),
        ("a: \x00", "special characters"),
        ("name: x\n? [a]\n: 1", "line 2: found unhashable key"),
        ("name: x\n1: 1", "a key must be text"),
        ("<<: {name: x}", "<<"),
    ],
)
def test_what_is_not_a_recipe_is_one_clear_error(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match="recipe: ") as raised:
        build_recipe(text)
    assert said in str(raised.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: \xe9")
    utf_16 = tmp_path / "utf_16.yaml"
    utf_16.write_bytes(TOY.encode("utf-16"))
    large = tmp_path / "large.yaml"
    large.write_text(TOY + "#" * 10_000_000, encoding="utf-8")
    for path in (latin, utf_16, large, tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(UserError, match=path.name):
            load_recipe(path)


@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text])
def test_line_ends_and_the_mark_of_another_system_change_nothing(change: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(change(TOY.lstrip()), encoding="utf-8", newline="")
    assert load_recipe(path) == build_recipe(TOY)


def test_a_recipe_comes_through_a_pipe_too(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(TOY, "utf-8"), daemon=True)
    writer.start()
    assert load_recipe(find_recipe(str(pipe))) == build_recipe(TOY)
    writer.join(timeout=10)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["name", "gipo", "all"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    text=st.sampled_from([TOY, (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")]),
    changes=st.lists(
        st.tuples(st.sampled_from(sorted(path for paths in homes().values() for path in paths)), ANYTHING), max_size=4
    ),
)
def test_whatever_is_written_the_answer_is_a_recipe_or_a_list_of_problems(
    text: str, changes: list[tuple[str, object]]
) -> None:
    overrides = [f"{path}={json.dumps(value)}" for path, value in changes]
    try:
        build_recipe(text, overrides)
    except RecipeError as error:
        assert error.problems
        assert all(problem.rule for problem in error.problems)
        assert str(error).startswith(f"recipe: {len(error.problems)} problem")
