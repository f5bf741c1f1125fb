"""Rules across sections of a recipe, and what the program fills in: the time limit, a run without a critic."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from recipe_texts import LIBERO, ROOT, SHIPPED, SUPERVISED, TOY, VLA, problems

from vla_rl.credit import Gae, Group
from vla_rl.recipe import (
    Recipe,
    SupervisedRecipe,
    build_recipe,
    load_recipe,
    load_recorded_recipe,
    recorded_time_limit,
    rules,
)
from vla_rl.recipe.dialect import parse
from vla_rl.rl.loss_weights import LossWeights

RECIPES = [path for path in SHIPPED if path not in SUPERVISED]
GROUPS = ["targets.name=group", "learner.micro_batch=8"]
METAWORLD = TOY.replace("{name: toy}", "{name: metaworld}")


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
