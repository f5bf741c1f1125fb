"""Limits of single fields, and the reference that tells them."""

from __future__ import annotations

import json
import math

import pytest
from recipe_texts import LIBERO, TOY, VLA, problems

from vla_rl.recipe import (
    FieldReference,
    RecipeError,
    build_recipe,
    field_references,
)
from vla_rl.recipe.shape import homes, kinds

EXTREMES: dict[str, list[object]] = {
    "whole number": [0, -1, 2**63 - 1, 2**63, 2**64, 10**30],
    "number": [0.0, -1.0, 5e-324, 1e-45, 1e38, 1e39, 1e308, math.inf, -math.inf, math.nan, 2**64],
    "text": ["", "x" * 300, "x" * 5000, "a\0b", "a/b", "-a", "a\nb", "\ud800"],
}
KINDS = {kind: key for key in ("env", "policy", "surrogate", "targets") for kind in kinds((key,))}
SUITE = ["env.suite=libero_spatial"]  # the one field of a kind that has no default


def extremes() -> list[tuple[FieldReference, object]]:
    """Every field of numbers or text with every extreme value of its types; a list with one as its only entry."""
    found: list[tuple[FieldReference, object]] = []
    for reference in field_references():
        words = reference.allowed.replace("whole number", "integer")
        named = {"whole number": "integer", "number": "number", "text": "text"}
        types = [name for name, word in named.items() if word in words]
        values = [value for name in types for value in EXTREMES[name]]
        found += [(reference, [value] if "list of" in words else value) for value in values]
    return found


def with_kind(reference: FieldReference) -> list[str]:
    """What makes a section the kind that a field belongs to."""
    optional = {"policy.lora": "openvla_oft", "env.perturb": "libero"}  # sections that belong to a kind
    kind = optional.get(reference.path.rpartition(".")[0], reference.kind)
    if kind not in KINDS:
        return []
    return [f"{KINDS[kind]}.name={kind}", *(SUITE if kind == "libero" else [])]


def test_the_extremes_reach_every_field_that_is_no_choice() -> None:
    reached = {(reference.path, reference.kind) for reference, _ in extremes()}
    others = [field for field in field_references() if (field.path, field.kind) not in reached]
    choices = {"true or false", "true or false or null", "auto or true or false", *KINDS}
    assert {field.allowed for field in others if "," not in field.allowed} <= choices
    assert len(reached) > 60


@pytest.mark.parametrize(("reference", "value"), extremes(), ids=lambda it: getattr(it, "path", repr(it)[:24]))
def test_an_extreme_value_is_refused_or_can_be_written_and_read(reference: FieldReference, value: object) -> None:
    override = f"{reference.path}={json.dumps(value).replace('Infinity', '.inf').replace('NaN', '.nan')}"
    try:
        recipe = build_recipe(TOY, [*with_kind(reference), override])
    except RecipeError as error:
        assert all(problem.rule for problem in error.problems)
        return
    assert build_recipe(recipe.dump_yaml()) == recipe
    json.dumps(recipe.model_dump(mode="json"), allow_nan=False).encode("utf-8")
    recipe.description.encode("utf-8")


def test_every_number_has_an_end() -> None:
    """No field takes 2**64 or 1e308, whatever it counts or measures."""
    endless = []
    for reference, value in extremes():
        inner = value[0] if isinstance(value, list) else value
        if inner in (2**64, 1e308):
            try:
                build_recipe(TOY, [*with_kind(reference), f"{reference.path}={json.dumps(value)}"])
            except RecipeError as error:
                if any(problem.path.startswith(reference.path) for problem in error.problems):
                    continue
            endless.append(reference.path)
    assert not endless


@pytest.mark.parametrize(
    ("override", "rule", "allowed"),
    [
        (f"name={'x' * 300}", "too long", "at most 128 characters"),
        ("seed=18446744073709551616", "out of range", "at most 9223372036854775807"),
        ("env.horizon=1000001", "out of range", "at most 1000000"),
        ('description="\\ud800"', "half a letter, which cannot be written to a file", "whole letters"),
    ],
)
def test_a_limit_is_told_in_full(override: str, rule: str, allowed: str) -> None:
    problem = problems(TOY, override)[override.split("=")[0]]
    assert problem.rule == rule
    assert problem.allowed.startswith(allowed)


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 256, "a/" * 2048 + "b", "é" * 128])
def test_what_cannot_be_a_path_is_refused(text: str) -> None:
    overrides = [LIBERO, f"policy={{name: openvla_oft, checkpoint: {json.dumps(text)}}}"]
    assert problems(TOY, *overrides)["policy.checkpoint"].rule == "cannot be a path"
    assert problems(TOY, LIBERO, VLA, f"env.assets={json.dumps(text)}")["env.assets"].rule == "cannot be a path"


def test_a_long_path_of_short_names_is_fine() -> None:
    text = "a/" * 1900 + "é" * 127
    assert build_recipe(TOY, [LIBERO, VLA, f"env.assets={json.dumps(text)}"]).env.model_dump()["assets"] == text


def test_the_reference_tells_what_the_models_allow() -> None:
    fields = {(field.path, field.kind): field for field in field_references()}
    assert fields["budget.optimizer_steps", ""].default == "required"
    assert fields["replay.max_policy_lag", ""].allowed == "whole number >= 0 or null"
    assert fields["surrogate.clip_low", "ppo"].allowed == "number > 0, < 1"
    assert fields["targets.lambda", "vtrace"].default == "1.0"
    assert fields["env.tasks", "libero"].allowed == "all or list of: whole number >= 0"
    assert fields["env.cameras", "libero"].default == "[agentview]"
    assert fields["policy.lora.rank", ""].default == "32"
    assert fields["policy.name", "mlp"].allowed == "mlp"
    assert fields["runtime.mode", ""].allowed == "async, serial"


def test_every_field_has_a_meaning() -> None:
    silent = [field.path for field in field_references() if not field.description and field.path.count(".") == 1]
    assert {path.split(".")[1] for path in silent} <= {"name"}  # of a kind: its section says what it is


def test_the_reference_names_every_key_that_holds_a_value() -> None:
    leaves = {path for paths in homes().values() for path in paths if not kinds(tuple(path.split(".")))}
    sections = {path.rpartition(".")[0] for path in leaves}
    assert {field.path for field in field_references()} == leaves - sections
