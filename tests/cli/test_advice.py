"""What messages tell people to type exists: verbs, options of the verb that says it, and fields of recipes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from vla_rl.cli.main import app
from vla_rl.recipe.model import Recipe
from vla_rl.recipe.shape import homes
from vla_rl.recipe.supervised import SupervisedRecipe

ROOT = Path(__file__).parents[2]

# Which verbs print the messages of a module that name options. A module that is not here may name none.
SPEAKERS = {
    "vla_rl/train.py": ["train"],
    "vla_rl/cli/train.py": ["train"],
    "vla_rl/cli/sft.py": ["sft"],
    "vla_rl/cli/run_folders.py": ["train", "sft"],
    "vla_rl/sft": ["sft"],
    "vla_rl/run/folder.py": ["train"],
    "vla_rl/run/roll_call.py": ["train", "sft"],
    "vla_rl/cli/eval.py": ["eval"],
    "vla_rl/evaluation/run_evaluations.py": ["train"],
    "vla_rl/evaluation/while_training.py": ["train", "sft"],
    "vla_rl/evaluation": ["eval"],
    "vla_rl/cli/number_lists.py": ["eval", "study libero", "study groups", "demos collect"],
    # What an evaluation may change of an environment or a policy is that kind's business.
    "vla_rl/envs/kind.py": ["eval"],
    "vla_rl/envs/libero/protocol.py": ["eval"],
    "vla_rl/envs/libero/section.py": ["eval"],
    "vla_rl/envs/libero/perturbed_plan.py": ["eval"],
    "vla_rl/envs/metaworld/section.py": ["eval"],
    "vla_rl/cli/export.py": ["export"],
    "vla_rl/export": ["export"],
    "vla_rl/envs/libero/folders": ["eval"],
    "vla_rl/cli/study/figures.py": ["study figures"],
    "vla_rl/cli/study/gridworld.py": ["study gridworld"],
    "vla_rl/cli/study/groups.py": ["study groups"],
    "vla_rl/cli/study/libero.py": ["study libero"],
    "vla_rl/cli/study/metaworld.py": ["study metaworld", "study merge"],
    "vla_rl/cli/study/options.py": ["study metaworld", "study libero", "study groups"],
    "vla_rl/studies/metaworld/merging.py": ["study merge"],
    "vla_rl/studies/metaworld": ["study metaworld"],
    "vla_rl/studies/paper_figures": ["study figures"],
    "vla_rl/studies/jobs.py": ["study metaworld", "study libero", "study groups"],
    "vla_rl/studies/price.py": ["study metaworld", "study libero", "study groups"],
    "vla_rl/studies/study_plan.py": ["study metaworld", "study libero"],
    "vla_rl/studies/libero": ["study libero"],
    "vla_rl/studies/grouped": ["study groups"],
    "vla_rl/studies/surrogate_labels.py": ["study metaworld", "study libero"],
    "vla_rl/studies/study_file.py": ["study metaworld", "study libero", "study groups"],
    "vla_rl/policies/kind.py": ["eval"],
    "vla_rl/policies/openvla_oft/dataset_statistics.py": ["eval"],
    "vla_rl/policies/openvla_oft/section.py": ["eval"],
    "vla_rl/cli/main.py": [""],
    "vla_rl/cli/assets.py": ["assets download", "assets check", "assets status"],
    "vla_rl/cli/demos.py": ["demos inspect", "demos convert", "demos collect"],
    "vla_rl/collection/replaying.py": ["demos convert"],
    "vla_rl/collection": ["demos collect"],
    "vla_rl/demos": ["demos inspect", "demos convert"],
    "vla_rl/cli/doctor.py": ["doctor"],
    "vla_rl/cli/metrics.py": ["metrics"],
    "vla_rl/cli/report.py": ["report"],
    "vla_rl/cli/card.py": ["card", "push"],
    "vla_rl/cli/push.py": ["push"],
    "vla_rl/sharing": ["card", "push"],
    "vla_rl/cli/runs.py": ["runs"],
    "vla_rl/cli/watch.py": ["watch"],
    "vla_rl/watch": ["watch"],
    "vla_rl/cli/recipes.py": ["recipes list", "recipes show", "recipes validate", "recipes fields"],
}
# Options of other programs, and what only looks like one.
FOREIGN = {
    "vla_rl/doctor/packages.py": {"--no-deps"},
    "vla_rl/envs/libero/suites.py": {"--no-deps"},
    "vla_rl/ipc/memory_check.py": {"--memory"},
    "vla_rl/remote/far_side.py": None,  # writes commands of Ray
    "vla_rl/learner/launch.py": None,  # builds the command of a launcher
    "vla_rl/reporting/manifest.py": {"--porcelain", "--untracked-files"},
    "vla_rl/reporting/html.py": None,  # variables of CSS
    "vla_rl/studies/metaworld/runner.py": {"--run-dir"},  # builds the command of a training
    "vla_rl/studies/grouped/runner.py": {"--run-dir", "--temperature"},  # builds commands of other verbs
    "vla_rl/studies/paper_figures/outputs.py": None,  # writes commands of other verbs
    "vla_rl/studies/held_out.py": None,  # builds the command of an evaluation
    "vla_rl/studies/jobs.py": {"--resume"},  # the same
    "vla_rl/evaluation/while_training.py": None,  # turns options of `eval` into fields
    "vla_rl/sharing/card.py": None,  # writes commands of other programs and verbs
    "vla_rl/policies/openvla_oft/original_code.py": None,  # writes the command of the original code
    "vla_rl/tracking/mlflow.py": {"--backend-store-uri"},
    "vla_rl/tracking/trackio.py": {"--project"},
    "vla_rl/studies/libero/stages.py": None,  # builds commands of other verbs
}
FILES = (".safetensors", ".log", ".json", ".yaml", ".jsonl", ".html", ".py")

FIELDS = {dotted for root in (Recipe, SupervisedRecipe) for places in homes(root).values() for dotted in places}
SECTIONS = {
    name
    for name in {*Recipe.model_fields, *SupervisedRecipe.model_fields}
    if any(field.startswith(f"{name}.") for field in FIELDS)
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
FIELD = re.compile(rf"(?<![\w./])(?:{'|'.join(sorted(SECTIONS))})(?:\.[a-z_]+)+")
COMMAND = re.compile(r"vla-rl ([a-z]+)((?: [^`;,\n]*)?)")


def verbs() -> dict[str, set[str]]:
    """Every verb with its options."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, set[str]]]:
        yield name, {"--help"} | {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        for child, below in getattr(command, "commands", {}).items():
            yield from walk(below, f"{name} {child}".strip())

    return dict(walk(typer.main.get_command(app), ""))


VERBS = verbs()


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module but its docstrings, with their lines; what is filled in later is a blank word."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    left_out: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            left_out.add(id(body[0].value))
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.lineno, node.value


SAID = [
    (str(file.relative_to(ROOT)), line, text)
    for file in sorted((ROOT / "vla_rl").rglob("*.py"))
    for line, text in texts(file)
]


def speakers_of(module: str) -> list[str]:
    return next((names for place, names in SPEAKERS.items() if module == place or module.startswith(f"{place}/")), [])


OPTIONS = [
    pytest.param(module, option, id=f"{module}:{line} {option}")
    for module, line, text in SAID
    for option in OPTION.findall(COMMAND.sub(" ", text))  # those of a whole command are looked at below
    if module not in FOREIGN or (FOREIGN[module] is not None and option not in (FOREIGN[module] or ()))
]
NAMED = [
    pytest.param(field, id=f"{module}:{line} {field}")
    for module, line, text in SAID
    for field in FIELD.findall(text)
    if not field.endswith(FILES)
]
COMMANDS = [
    pytest.param(match[1], match[2], id=f"{module}:{line} {match[0]}")
    for module, line, text in SAID
    for match in COMMAND.finditer(text)
    if match[1] not in ("that", "writes")  # prose
]


def test_there_is_something_to_look_at() -> None:
    assert (len(OPTIONS) > 50, len(NAMED) > 60, len(COMMANDS) > 10) == (True, True, True)


@pytest.mark.parametrize(("module", "option"), OPTIONS)
def test_an_option_that_a_message_names_belongs_to_the_verb_that_says_it(module: str, option: str) -> None:
    speakers = speakers_of(module)
    assert speakers, f"{module} names {option}: say in SPEAKERS which verb prints it"
    if len(speakers) == 1:
        assert option in VERBS[speakers[0]]
    else:
        assert any(option in VERBS[name] for name in speakers)


@pytest.mark.parametrize("field", NAMED)
def test_a_field_that_a_message_names_is_one_of_recipes(field: str) -> None:
    assert field in FIELDS


@pytest.mark.parametrize(("verb", "rest"), COMMANDS)
def test_a_command_that_a_message_names_is_one(verb: str, rest: str) -> None:
    words = rest.split()
    name = f"{verb} {words[0]}" if words and f"{verb} {words[0]}" in VERBS else verb
    assert name in VERBS
    assert {word for word in words if word.startswith("--")} <= VERBS[name]
    for word in words:
        if "=" in word and not word.startswith("--"):
            assert word.split("=")[0] in FIELDS


def test_verbs_without_overrides_advise_none() -> None:
    """`eval` and `export` take options alone."""
    advised = {
        (module, field)
        for module, _, text in SAID
        if module.startswith(("vla_rl/evaluation", "vla_rl/export", "vla_rl/cli/e"))
        and speakers_of(module) not in (["train"], ["train", "sft"])
        for field in FIELDS
        if re.search(rf"{re.escape(field)}=", text) and not re.search(r"`vla-rl (train|sft) ", text)
    }
    assert advised == set()
