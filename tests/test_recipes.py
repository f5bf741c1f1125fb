"""Recipes: every shipped one loads, every fault is told, and what is dumped loads again."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import pkgutil
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_rl.credit import Gae, Group, Vtrace
from vla_rl.errors import UserError
from vla_rl.policies.openvla_oft.hub import is_hub_id
from vla_rl.recipe import (
    FieldReference,
    Problem,
    Recipe,
    RecipeError,
    SupervisedRecipe,
    build_recipe,
    field_references,
    find_recipe,
    is_supervised,
    list_recipes,
    load_any_recipe,
    load_recipe,
    load_recorded_recipe,
    recorded_time_limit,
    rules,
)
from vla_rl.recipe.dialect import parse
from vla_rl.recipe.shape import homes, kinds
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.surrogates import Sapo

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "recipes").glob("*.y*ml"))
SUPERVISED = [path for path in SHIPPED if is_supervised(path)]
RECIPES = [path for path in SHIPPED if path not in SUPERVISED]
BASES = sorted((ROOT / "recipes" / "bases").glob("*.y*ml"))

KEYS = sorted(homes())

TOY = """
name: t
env: {name: toy}
policy: {name: mlp}
surrogate: {name: gipo, sigma: 0.5}
budget: {optimizer_steps: 10}
"""


GROUPS = ["targets.name=group", "learner.micro_batch=8"]


def problems(text: str, *overrides: str) -> dict[str, Problem]:
    """The problems of a recipe by path; fails if there are none."""
    with pytest.raises(RecipeError) as raised:
        build_recipe(text, overrides)
    found = {problem.path: problem for problem in raised.value.problems}
    assert len(found) == len(raised.value.problems), "the same path was reported twice"
    for problem in found.values():
        assert str(problem).splitlines()[0] in str(raised.value)
    return found


# --- shipped recipes -------------------------------------------------------------------------------------------------


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


# --- values ----------------------------------------------------------------------------------------------------------


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


# --- errors ----------------------------------------------------------------------------------------------------------


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


# --- limits ----------------------------------------------------------------------------------------------------------

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


# --- overrides -------------------------------------------------------------------------------------------------------


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


# --- bases -----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.stem)
def test_a_base_that_comes_with_the_program_is_no_recipe_by_itself(path: Path) -> None:
    assert path.stem not in list_recipes()
    with pytest.raises(UserError, match=f"it is a base, .* write a file with `base: {path.stem}`"):
        find_recipe(path.stem)


def test_the_list_that_a_message_shows_is_one_word_on_the_command_line() -> None:
    shown = problems(TOY, "env.tasks=0,1")["env.tasks"].allowed.partition("a list, like ")[2]
    (override,) = shlex.split(f"env.tasks={shown}")
    assert build_recipe(TOY, [override]).env.task_ids == [0, 1]


# --- the time limit --------------------------------------------------------------------------------------------------

LIBERO = "env={name: libero, suite: libero_spatial}"
VLA = "policy={name: openvla_oft}"
METAWORLD = TOY.replace("{name: toy}", "{name: metaworld}")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_checkpoint_that_a_recipe_leaves_to_its_user_is_not_taken_for_one_of_the_hub(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id(getattr(load_any_recipe(path).policy, "checkpoint", "tiny"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_says_what_its_horizon_is_to_the_task(path: Path) -> None:
    written = parse(path.read_text(encoding="utf-8")).data
    if "base" in written:
        written = parse((ROOT / "recipes" / "bases" / f"{written['base']}.yaml").read_text(encoding="utf-8")).data
    expected = "bootstrap" if written["env"]["name"] == "metaworld" else "end"
    assert written["targets"]["time_limit"] == load_recipe(path).targets.time_limit == expected


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (TOY, [], "end"),
        (TOY, [LIBERO, VLA], "end"),
        (METAWORLD, [], "bootstrap"),
        (METAWORLD + "targets: {name: vtrace}", [], "bootstrap"),
        (METAWORLD + "targets: {name: gae, time_limit: null}", [], "bootstrap"),
        (METAWORLD + "targets: {name: gae, time_limit: end}", [], "end"),
        (METAWORLD, ["targets.time_limit=end"], "end"),
        (METAWORLD, ["targets={name: vtrace, time_limit: end}"], "end"),
        # Another environment brings its own, whether its section is replaced or only renamed ...
        (TOY + "targets: {name: gae, time_limit: end}", ["env.name=metaworld"], "bootstrap"),
        (TOY + "targets: {name: gae, time_limit: end}", ["env={name: metaworld}"], "bootstrap"),
        (METAWORLD + "targets: {name: gae, time_limit: bootstrap}", ["env.name=toy"], "end"),
        (METAWORLD + "targets: {name: gae, time_limit: bootstrap}", ["env.name=toy", "targets.name=vtrace"], "end"),
        # ... but not where someone departed from the usual, in the file or here.
        (METAWORLD + "targets: {name: gae, time_limit: end}", ["env.name=toy"], "end"),
        (TOY + "targets: {name: gae, time_limit: bootstrap}", ["env.name=metaworld"], "bootstrap"),
        (TOY + "targets: {name: gae, time_limit: bootstrap}", [LIBERO, VLA], "bootstrap"),
        (TOY, ["targets.time_limit=end", "env.name=metaworld"], "end"),
        (TOY, ["env.name=metaworld", "targets={name: gae, time_limit: end}"], "end"),
    ],
)
def test_the_time_limit_is_the_environment_s_unless_someone_says_otherwise(
    text: str, overrides: list[str], expected: str
) -> None:
    recipe = build_recipe(text, overrides)
    assert recipe.targets.time_limit == expected
    assert parse(recipe.dump_yaml()).data["targets"]["time_limit"] == expected
    assert Recipe.model_validate(recipe.model_dump(by_alias=True)) == recipe


def test_a_recipe_made_of_sections_has_a_time_limit_too() -> None:
    sections = {name: getattr(build_recipe(METAWORLD), name) for name in ("env", "policy", "surrogate", "budget")}
    assert Recipe(name="made", targets=Gae(name="gae"), **sections).targets.time_limit == "bootstrap"


def test_an_unknown_time_limit_is_answered_with_those_that_exist() -> None:
    assert problems(TOY, "targets.time_limit=stop")["targets.time_limit"].allowed == "end, bootstrap"


def test_a_run_that_is_older_than_the_time_limit_bootstrapped(tmp_path: Path) -> None:
    older, recorded = tmp_path / "older.yaml", tmp_path / "recorded.yaml"
    recorded.write_text(build_recipe(TOY).dump_yaml(), encoding="utf-8")
    older.write_text(recorded.read_text(encoding="utf-8").replace("  time_limit: end\n", ""), encoding="utf-8")
    assert load_recorded_recipe(older).targets.time_limit == "bootstrap"
    assert load_recorded_recipe(older, ["targets.time_limit=end"]).targets.time_limit == "end"
    assert load_recorded_recipe(recorded).targets.time_limit == "end"
    assert (recorded_time_limit(older), recorded_time_limit(recorded)) == (None, "end")
    assert load_recipe(older).targets.time_limit == "end"  # as a recipe of a new run it has the default


@pytest.mark.parametrize("override", ["x", "=1", ".seed=1", "env.=1", "seed=[", "seed={a: 1, a: 2}", "name.x=1"])
def test_an_override_that_cannot_be_applied_is_a_problem(override: str) -> None:
    with pytest.raises(RecipeError) as raised:
        build_recipe(TOY, [override])
    assert override in str(raised.value)


# --- rules across sections -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "policy", "env"),
    [([LIBERO], "openvla_oft", "toy"), ([VLA], "mlp", "libero"), (["env={name: metaworld}", VLA], "mlp", "libero")],
)
def test_a_policy_that_cannot_see_is_answered_with_those_that_can_and_environments_for_it(
    overrides: list[str], policy: str, env: str
) -> None:
    policies, envs = problems(TOY, *overrides)["policy.name"].allowed.split(", or env.name ")
    assert policy in policies.split(", ") and f"'{env}'" in envs.split(" or ")
    assert not ({"openvla_oft", "mlp"} - {policy}) & set(policies.split(", "))


@pytest.mark.parametrize(
    ("overrides", "path", "allowed"),
    [
        (["env={name: metaworld, horizon: 6}", "replay.segment_length=7"], "replay.segment_length", "1..6"),
        (["env={name: metaworld, horizon: 501}"], "env.horizon", "at most 500"),
        (["replay.min_decisions=200", "replay.capacity=100"], "replay.min_decisions", "1..100"),
        (["replay.segment_length=9"], "replay.segment_length", "1..8"),  # horizon 16, chunks of 2
        (["env.horizon=17", "replay.segment_length=10"], "replay.segment_length", "1..9"),
        ([LIBERO, VLA, "replay.segment_length=29"], "replay.segment_length", "1..28"),  # 220 steps in chunks of 8
        ([LIBERO, VLA, "env.horizon=16", "replay.segment_length=3"], "replay.segment_length", "1..2"),
        (["evaluation.tasks=[1]"], "evaluation.tasks", "[0]"),
        ([LIBERO, VLA, "env.tasks=[10]"], "env.tasks", "0..9, all"),
        ([LIBERO, VLA, "env.cameras=[]"], "env.cameras", ""),
        ([LIBERO, VLA, "env.suite=libero_goal", "env.init_states=spare"], "env.init_states", "sampled, standard"),
        (["optimizer.policy_warmup=30", "budget.optimizer_steps=30"], "optimizer.policy_warmup", "0..29, a larger"),
        (["optimizer.value_warmup=31", "budget.optimizer_steps=30"], "optimizer.value_warmup", "0..29, a larger"),
        (["optimizer.critic_only_steps=30", "budget.optimizer_steps=30"], "optimizer.critic_only_steps", "0..29, or a"),
        (
            ["optimizer={policy_warmup: 10, critic_only_steps: 20, schedule: linear}", "budget.optimizer_steps=30"],
            "optimizer.policy_warmup",
            "0..9, a larger",
        ),
        (["learner.compile=layers"], "learner.compile", "off, or policy.name 'openvla_oft'"),
        (
            ["learner.strategy=deepspeed", "learner.reuse_passes=true"],
            "learner.reuse_passes",
            "false, or strategy 'single' or 'ddp'",
        ),
        (
            [LIBERO, VLA, "learner.compile=layers", "learner.strategy=deepspeed", "learner.zero_stage=3"],
            "learner.compile",
            "off, or learner.zero_stage 1 or 2",
        ),
        (["learner.num_ranks=2"], "learner.num_ranks", "auto, 1, or strategy 'ddp' or 'deepspeed'"),
        (["learner.strategy=ddp", "runtime.mode=serial"], "learner.strategy", "single, or runtime.mode 'async'"),
        (["policy.value_head=none"], "policy.value_head", "mlp, or targets.name 'group'"),
        ([*GROUPS, "policy.value_head=mlp"], "policy.value_head", "none"),
        ([*GROUPS, "optimizer.critic_only_steps=2"], "optimizer.critic_only_steps", "0"),
        (["loss.aggregation=constant"], "loss.aggregation", "token, or targets.name 'group'"),
        ([*GROUPS, "learner.micro_batch=12"], "learner.micro_batch", "a multiple of 8, or a larger"),
        ([*GROUPS, "replay.segment_length=3"], "learner.micro_batch", "a multiple of 24, or a larger"),
        ([*GROUPS, "replay.capacity=224"], "replay.capacity", ">= 225"),  # 9 rows each of 8 (1 + 2) + 1 episodes
        ([*GROUPS, "targets.uses=2", "replay.replay_ratio=3"], "replay.replay_ratio", "at most 2"),
        ([*GROUPS, "targets.time_limit=bootstrap"], "targets.time_limit", "end"),
    ],
)
def test_sections_that_do_not_fit_are_refused(overrides: list[str], path: str, allowed: str) -> None:
    found = problems(TOY, *overrides)
    assert set(found) == {path}
    assert found[path].allowed.startswith(allowed)
    assert found[path].rule


@pytest.mark.parametrize(
    "overrides",
    [
        [LIBERO, VLA],
        [LIBERO, VLA, "replay.segment_length=28"],
        ["replay.min_decisions=100", "replay.capacity=100"],
        ["replay.segment_length=8"],
        ["optimizer={policy_warmup: 29, value_warmup: 29}", "budget.optimizer_steps=30"],
        ["optimizer={policy_warmup: 31, schedule: constant}", "budget.optimizer_steps=30"],
        ["optimizer={policy_warmup: 9, critic_only_steps: 20, schedule: linear}", "budget.optimizer_steps=30"],
        ["learner.strategy=ddp", "learner.num_ranks=2"],
        ["env.tasks=[0,2]", "evaluation.tasks=[2]"],
        ["env={name: metaworld, tasks: [push-v3, door-open-v3]}", "evaluation.tasks=[15]"],
        [*GROUPS, "loss.aggregation=constant", "replay.capacity=225", "replay.min_decisions=8"],
        ["env={name: metaworld}", *GROUPS, "replay.segment_length=500", "replay.capacity=13000"],
    ],
)
def test_sections_that_fit_are_accepted(overrides: list[str]) -> None:
    build_recipe(TOY, overrides)


def test_groups_have_neither_a_critic_nor_advantages_normalised_twice_unless_someone_says_otherwise() -> None:
    recipe = build_recipe(TOY, GROUPS)
    assert (recipe.policy.value_head, recipe.loss.normalize_advantages) == ("none", False)
    assert recipe.targets.time_limit == "end"
    assert build_recipe(recipe.dump_yaml()) == recipe
    assert build_recipe(TOY, [*GROUPS, "loss.normalize_advantages=true"]).loss.normalize_advantages
    usual = build_recipe(TOY)
    assert (usual.policy.value_head, usual.loss.normalize_advantages) == ("mlp", True)
    sections = {
        **usual.model_dump(by_alias=True),
        "loss": LossWeights(entropy_coefficient=0.5),
        "policy": {"name": "mlp"},
    }
    made = Recipe.model_validate(sections | {"learner": {"micro_batch": 8}, "targets": Group(name="group")})
    assert made.loss == LossWeights(entropy_coefficient=0.5, normalize_advantages=False)
    assert made.policy.value_head == "none"


def test_models_built_in_code_obey_the_same_rules() -> None:
    data = build_recipe(TOY).model_dump(by_alias=True)
    data["replay"]["min_decisions"] = data["replay"]["capacity"] + 1
    with pytest.raises(ValueError, match=r"replay\.min_decisions"):
        Recipe.model_validate(data)


def test_a_task_that_meta_world_lacks_is_answered_with_those_it_has() -> None:
    found = problems(TOY, "env={name: metaworld, tasks: [door-open]}")["env.tasks"]
    assert found.found == "['door-open']"
    assert "door-open-v3" in found.allowed


# --- the reference ---------------------------------------------------------------------------------------------------


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


def test_every_rule_of_a_subject_is_checked() -> None:
    fields = {*Recipe.model_fields, *SupervisedRecipe.model_fields}
    files = [importlib.import_module(f"{rules.__name__}.{file.name}") for file in pkgutil.iter_modules(rules.__path__)]
    written = {
        value
        for file in files
        for value in vars(file).values()
        if inspect.isfunction(value) and value.__module__ == file.__name__
        if inspect.signature(value).parameters.keys() <= fields  # else it helps rules
    }
    assert len(files) > 5
    assert written == {*rules.RULES, *rules.SUPERVISED_RULES}


def test_the_reference_names_every_key_that_holds_a_value() -> None:
    leaves = {path for paths in homes().values() for path in paths if not kinds(tuple(path.split(".")))}
    sections = {path.rpartition(".")[0] for path in leaves}
    assert {field.path for field in field_references()} == leaves - sections


# --- weight ----------------------------------------------------------------------------------------------------------


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


# --- dumping ---------------------------------------------------------------------------------------------------------


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
