"""The steps of CONTRIBUTING.md, followed word for word in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SURROGATES = Path("vla_rl/rl/surrogates")
COPIED = ("vla_rl", "tests", "recipes", "docs", "scripts", *(file.name for file in ROOT.glob("*.*") if file.is_file()))


def steps(title: str) -> tuple[str, list[str]]:
    """The text of a section of CONTRIBUTING.md, and its blocks of code without their indentation."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section
    blocks = re.findall(r"^   ```(?:python|diff)\n(.*?)^   ```", section[1], re.MULTILINE | re.DOTALL)
    return section[1], ["".join(line[3:] or "\n" for line in block.splitlines(True)) for block in blocks]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the surrogate `hard` in it: one new file, two lines elsewhere."""
    copy = tmp_path_factory.mktemp("repository")
    for name in [*COPIED, "LICENSE"]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy / name)
    text, (new_file, two_lines) = steps("How to add a surrogate")
    imported, member = (line[1:] for line in two_lines.splitlines(keepends=True) if line.startswith("+"))
    assert f"in a new file `hard.py` in `{SURROGATES}/`" in text
    (copy / SURROGATES / "hard.py").write_text(new_file, encoding="utf-8")
    assert f"in `{SURROGATES}/__init__.py`" in text
    module = copy / SURROGATES / "__init__.py"
    lines = module.read_text(encoding="utf-8").splitlines(keepends=True)
    before = max(at for at, line in enumerate(lines) if line.startswith("from vla_rl") and line < imported)
    lines.insert(before + 1, imported)
    union = next(at for at, line in enumerate(lines) if line.startswith("AnySurrogate = "))
    lines.insert(next(at for at, line in enumerate(lines) if at > union and line.strip() == "],"), member)
    module.write_text("".join(lines), encoding="utf-8")
    return copy


def run(changed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A module of Python in the copy, whose package comes before the installed one."""
    environment = os.environ | {"PYTHONPATH": str(changed)}
    code = "import sys, vla_rl; sys.exit(not vla_rl.__file__.startswith(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(changed)], cwd=changed, env=environment, check=True)
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=changed, env=environment, capture_output=True, text=True, check=False
    )


def test_the_new_surrogate_trains(changed: Path, tmp_path: Path) -> None:
    text, _ = steps("How to add a surrogate")
    command = re.search(r"`vla-rl (train toy surrogate\.name=hard [^`]*)`", text)
    assert command
    done = run(
        changed, "vla_rl", *command[1].split(), "budget.optimizer_steps=3", "runtime.mode=serial", "runtime.device=cpu",
        "--run-dir", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "name: hard\n  width: 0.3\n" in (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_the_new_surrogate_is_offered_and_described(changed: Path) -> None:
    done = run(changed, "vla_rl", "recipes", "fields", "surrogate")
    assert re.search(r"surrogate\.width  \(hard\)\n.*default: 0\.5\n.*are dropped", done.stdout), (
        done.stdout + done.stderr
    )
    refused = run(changed, "vla_rl", "train", "toy", "surrogate.name=herd", "--dry-run")
    assert re.search(r"allowed  .*\bhard\b", refused.stderr), refused.stderr


def test_the_new_surrogate_is_compared_in_the_gridworld(changed: Path, tmp_path: Path) -> None:
    done = run(changed, "vla_rl", "study", "gridworld", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| hard " in (tmp_path / "gridworld.md").read_text(encoding="utf-8")


def test_the_new_files_are_in_good_style(changed: Path) -> None:
    for check in (["check"], ["format", "--check"]):
        done = run(changed, "ruff", *check, str(SURROGATES))
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "tests",
    [
        ("tests/test_layers.py", "tests/test_readme.py", "tests/test_recipes.py"),
        ("tests/rl",),
        pytest.param(
            ("tests/studies/test_gridworld.py", "tests/studies/test_metaworld_grid.py"), marks=pytest.mark.slow
        ),
        pytest.param(("tests/learner/test_update.py", "tests/train/test_recipe_limits.py"), marks=pytest.mark.slow),
    ],
    ids=lambda paths: paths[0],
)
def test_what_knows_the_kinds_stays_green(changed: Path, tests: tuple[str, ...]) -> None:
    done = run(changed, "pytest", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=ci", *tests)
    assert done.returncode == 0, done.stdout[-3000:]
