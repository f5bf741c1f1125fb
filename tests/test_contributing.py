"""The surrogate of CONTRIBUTING.md, added word for word; and the checks beside everything that it tells to add."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from contributed import SURROGATES, add_environment, add_policy, add_surrogate, call, copy_repository, section_of


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the surrogate `hard` in it: one new file, two lines elsewhere."""
    copy = copy_repository(tmp_path_factory.mktemp("repository") / "copy")
    add_surrogate(copy)
    code = "import sys, vla_rl; sys.exit(not vla_rl.__file__.startswith(sys.argv[1]))"
    call(copy, "-c", code, str(copy))
    return copy


def test_the_new_surrogate_trains(changed: Path, tmp_path: Path) -> None:
    command = re.search(r"`vla-rl (train toy surrogate\.name=hard [^`]*)`", section_of("How to add a surrogate"))
    assert command
    call(
        changed, "-m", "vla_rl", *command[1].split(), "budget.optimizer_steps=3", "runtime.mode=serial",
        "runtime.device=cpu", "evaluation.episodes_per_task=0", "--run-dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert "name: hard\n  width: 0.3\n" in (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_the_new_surrogate_is_offered_and_described(changed: Path) -> None:
    told = call(changed, "-m", "vla_rl", "recipes", "fields", "surrogate").stdout
    assert re.search(r"surrogate\.width  \(hard\)\n.*default: 0\.5\n.*are dropped", told), told
    refused = call(changed, "-m", "vla_rl", "train", "toy", "surrogate.name=herd", "--dry-run", code=2)
    assert re.search(r"allowed  .*\bhard\b", refused.stderr), refused.stderr


def test_the_new_surrogate_is_compared_in_the_gridworld(changed: Path, tmp_path: Path) -> None:
    call(changed, "-m", "vla_rl", "study", "gridworld", "--out", str(tmp_path))
    assert "| hard " in (tmp_path / "gridworld.md").read_text(encoding="utf-8")


def test_the_new_files_are_in_good_style(changed: Path) -> None:
    for check in (["check"], ["format", "--check"]):
        call(changed, "-m", "ruff", *check, str(SURROGATES))


KNOW_THE_KINDS = (
    "tests/test_layers.py",
    "tests/test_readme.py",
    "tests/recipe",
    "tests/rl/test_surrogates.py",
    "tests/rl/test_log_weights.py",
    "tests/studies/test_gridworld.py",
    "tests/studies/test_metaworld_grid.py::test_every_surrogate_is_one_of_the_study",
    "tests/learner/test_update.py::test_rewarded_tokens_become_likelier",
    "tests/train/test_recipe_limits.py",
)
# Of the runs at the ends of fields, those of the surrogates' own.
NEW = "not at_the_end_of_a_field or surrogate"


def test_what_knows_the_kinds_stays_green_beside_all_that_is_added(changed: Path) -> None:
    """In one copy, so that they run once; what each addition changes by itself is tested beside it."""
    add_environment(changed)
    add_policy(changed)
    options = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=ci", "-k", NEW]
    call(changed, "-m", "pytest", *options, *KNOW_THE_KINDS)  # an exit code of its own says that nothing was run
