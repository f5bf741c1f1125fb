"""The documents: every command, option, field and file they name exists."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from vla_rl.cli.main import app
from vla_rl.recipe import Recipe, RecipeError, SupervisedRecipe, find_recipe, load_any_recipe, load_recipe
from vla_rl.recipe.shape import field_sections, homes
from vla_rl.section import Section

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")))
CHECKED = ("libero_spatial_gipo", "metaworld_stale", "libero_sft_7b")
SECTIONS = {path for root in (Recipe, SupervisedRecipe) for paths in homes(root).values() for path in paths}


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every line of the blocks marked `sh`, and every inline command, without comments."""
    found: list[str] = []
    for document in DOCUMENTS:
        for block in re.findall(r"^```sh\n(.*?)^```", text_of(document), re.MULTILINE | re.DOTALL):
            found += [line.split(" #")[0].strip() for line in block.splitlines() if line.strip()]
        found += [code for code in re.findall(r"`(vla-rl [^`]+)`", text_of(document)) if "hard" not in code]
    return sorted(set(found))


VLA_RL = [command for command in commands() if command.startswith("vla-rl")]


def test_the_documents_hold_commands_to_check() -> None:
    assert len(VLA_RL) >= 10
    assert commands()


def test_the_readme_opens_with_the_two_commands() -> None:
    lines = [line.split(" #")[0].strip() for line in text_of("README.md").splitlines()[:6]]
    assert [line for line in lines if line.startswith("scripts/")] == ["scripts/quickstart", "scripts/test"]


@pytest.mark.parametrize("command", VLA_RL)
def test_a_named_command_parses(command: str) -> None:
    """Verb and options are the program's own; a recipe with its overrides is valid."""
    _, *words = shlex.split(command)
    verb: Any = typer.main.get_command(app)
    path: list[str] = []
    while words and hasattr(verb, "commands") and not words[0].startswith("-"):
        path.append(words.pop(0))
        assert path[-1] in verb.commands, f"{command}: no verb {path}"
        verb = verb.commands[path[-1]]
    known = {option for each in verb.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known
    if path in (["train"], ["sft"]) and words and Path(words[0]).parts[0] != "runs" and words[0] != "RECIPE":
        load_any_recipe(find_recipe(words[0]), [word for word in words[1:] if "=" in word])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_runs_that_a_page_begins_have_different_folders(document: str) -> None:
    """A second run in a folder is refused, so the commands of a page can be typed one after the other."""
    begun = ["runs/quickstart"] if document == "README.md" else []  # by the script in its first lines
    for block in re.findall(r"^```sh\n(.*?)^```", text_of(document), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["vla-rl", "train"] and not {"--resume", "--dry-run"} & set(words):
                begun.append(f"runs/{load_any_recipe(find_recipe(words[2]), words[3:]).name}")
    assert len(begun) == len(set(begun))


@pytest.mark.parametrize("script", sorted({word for line in commands() for word in re.findall(r"^scripts/\w+", line)}))
def test_a_named_script_can_be_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_fields_that_are_named_exist(document: str) -> None:
    named = re.findall(r"`([a-z_]+\.[a-z_]+)(?:=([^`]*))?`", text_of(document))
    fields = [(path, value) for path, value in named if field_sections_or_none(path.split(".")[0])]
    for path, value in fields:
        assert path in SECTIONS, f"{document}: {path}"
        if value:
            check_value(f"{path}={value}")


def test_the_documents_name_many_fields() -> None:
    named = {
        path for document in DOCUMENTS for path in re.findall(r"`([a-z_]+\.[a-z_]+)(?:=[^`]*)?`", text_of(document))
    }
    assert len(named & SECTIONS) > 30


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len(text_of("README.md").split()) <= 900


def field_sections_or_none(key: str) -> list[type[Section]]:
    return field_sections(Recipe, key) or field_sections(SupervisedRecipe, key)


def check_value(override: str) -> None:
    """The override is allowed in one of a few recipes, apart from what depends on other fields."""
    refusals = [error for name in CHECKED if (error := refusal(name, override))]
    assert len(refusals) < len(CHECKED), "\n".join(map(str, refusals))


def refusal(name: str, override: str) -> RecipeError | None:
    """The recipe's error, if the overridden field has a part in it."""
    try:
        load_any_recipe(find_recipe(name), [override])
    except RecipeError as error:
        parts = override.split("=")[0].split(".")
        places = {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}  # an unknown section is told as one
        return error if places & {problem.path for problem in error.problems} else None
    return None


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_that_are_named_exist(document: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text_of(document))
    paths = re.findall(r"`((?:vla_rl|tests|scripts|recipes)/[\w./]+)`", text_of(document))
    for link in links:
        assert ((ROOT / document).parent / link).exists(), f"{document}: {link}"
    for path in paths:
        assert (ROOT / path).exists(), f"{document}: {path}"


def test_the_error_shown_in_the_readme_is_the_program_s() -> None:
    shown = re.search(r"\$ vla-rl train (.*)\nerror: recipes/(\w+)\.yaml: (.*?)```", text_of("README.md"), re.DOTALL)
    assert shown
    name, *overrides = shown[1].split()
    with pytest.raises(RecipeError) as raised:
        load_recipe(find_recipe(name), overrides)
    assert str(raised.value).split(": ", 1)[1] == shown[3].rstrip("\n")
