"""Values in a recipe: what a number, a word and a text are, and that what is dumped loads again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_texts import TOY, problems

from vla_rl.recipe import (
    Recipe,
    build_recipe,
)


@pytest.mark.parametrize(
    ("written", "value"), [("1e-5", 1e-5), ("1.0e-5", 1e-5), ("3", 3.0), (".5", 0.5), ("1E+1", 10.0), ("2.", 2.0)]
)
def test_a_number_is_what_it_looks_like(written: str, value: float) -> None:
    assert build_recipe(TOY + f"optimizer: {{max_grad_norm: {written}}}").optimizer.max_grad_norm == value
    assert build_recipe(TOY, [f"optimizer.max_grad_norm={written}"]).optimizer.max_grad_norm == value


@pytest.mark.parametrize(
    "override",
    [
        "seed=1.0", "seed=true", "seed='1'", "seed=1_000", "seed=0x10", "seed=", "seed=1:30", "seed=-1",
        "logging.tensorboard=on", "logging.tensorboard=1", "logging.tensorboard='true'", "name=3", "description=3",
        "optimizer.policy_lr='1e-5'", "optimizer.policy_lr=.inf", "optimizer.policy_lr=.nan",
        "optimizer.policy_lr=true", "env.tasks=3", "env.tasks=[0, 0]", "env.tasks=[]", "env.tasks=['0']",
        "env.tasks=[true]", "evaluation.tasks=[]", "loss=3", "loss=null", "loss=[]", "name=../up", "name=''",
    ],
)  # fmt: skip
def test_nothing_else_is_converted(override: str) -> None:
    assert list(problems(TOY, override)) == [override.split("=")[0]] or "env.tasks[0]" in problems(TOY, override)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0x1F", "31"), ("0o17", "15"), ("0b101", "5"), ("1_000", "1000"), ("1,000", "1000"), ("12:30:45", "45045"),
        ("1:30", "90"), ("-1:30", "-90"), ("'12'", "12"), ("'1e-5'", "1e-5"), ("'1,5'", "1.5"), ("+0x10", "16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["seed", "optimizer.max_grad_norm"])
def test_a_number_of_another_dialect_is_answered_with_the_one_to_write(field: str, written: str, meant: str) -> None:
    hint = problems(TOY, f"{field}={written}")[field].hint
    assert hint.endswith(f"; write {meant}")


@pytest.mark.parametrize(
    ("written", "meant"), [("yes", "true"), ("On", "true"), ("y", "true"), ("no", "false"), ("OFF", "false")]
)
def test_a_word_for_true_or_false_is_answered_with_the_one_to_write(written: str, meant: str) -> None:
    assert problems(TOY, f"logging.tensorboard={written}")["logging.tensorboard"].hint == f"write {meant}"


@pytest.mark.parametrize(
    "written", ["fast", "0x" + "f" * 5000, "1" + ":1" * 5000, "1:90", "0o9", "0xg", "1,2,3", "_", ",", "-", "1-2"]
)
def test_what_is_no_number_anywhere_gets_no_hint(written: str) -> None:
    assert problems(TOY, f"seed='{written}'")["seed"].hint == ""


def test_a_merge_key_is_refused_in_words_that_name_no_override() -> None:
    found = problems(TOY.replace("sigma: 0.5", "<<: {sigma: 0.5}"))["surrogate.<<"]
    assert (found.rule, found.hint) == ("merge keys are not part of YAML 1.2", "write the keys out")
    assert found.place == "line 5"
    assert "=" not in str(found)


def test_a_key_that_is_no_text_is_told_once() -> None:
    assert set(problems(TOY + "optimizer: {5: 1}")) == {"optimizer"}
    assert problems(TOY, "optimizer={5: 1}")["optimizer"].place == "optimizer={5: 1}"


def test_leading_zeros_are_decimal() -> None:
    assert build_recipe(TOY, ["seed=010"]).seed == 10


@settings(deadline=None)
@given(
    description=st.text(st.characters(exclude_categories=("Cs",))),  # type: ignore[arg-type]
    max_grad_norm=st.floats(1e-300, 1e12) | st.integers(1, 10**12),
    surrogate=st.sampled_from(["{name: sapo, tau_neg: 1e-5}", "{name: no_clip}", "{name: ppo, clip_high: 3}"]),
    targets=st.sampled_from(["{name: gae}", "{name: vtrace, lambda: 0.25}"]),
)
def test_a_dumped_recipe_loads_to_an_equal_one(
    description: str, max_grad_norm: float, surrogate: str, targets: str
) -> None:
    first = build_recipe(
        TOY, [f"surrogate={surrogate}", f"targets={targets}", f"optimizer.max_grad_norm={max_grad_norm!r}"]
    )
    first = first.model_copy(update={"description": description})
    assert build_recipe(first.dump_yaml()) == first


@pytest.mark.parametrize("text", ["1e5", "010", "on", "~", "", "null", "true", "0x1F", "1:30", "*a", "!x", "\x85", "µ"])
def test_text_that_looks_like_something_else_survives(text: str) -> None:
    first = build_recipe(TOY).model_copy(update={"description": text})
    assert build_recipe(first.dump_yaml()).description == text


def test_the_dump_is_complete_and_in_the_order_of_the_models() -> None:
    lines = [line for line in build_recipe(TOY).dump_yaml().splitlines() if not line.startswith(" ")]
    assert [line.split(":")[0] for line in lines] == list(Recipe.model_fields)
