"""What CONTRIBUTING tells to do is done, literally, in a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks_of(title: str) -> list[str]:
    """The Python of one section of CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository in which anything may be changed."""
    for name in ("vla_rl", "recipes", "tests"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


def call(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def changed_files(copy: Path) -> set[str]:
    """Files of the package that differ from ours or are new."""
    files = (path.relative_to(copy) for path in (copy / "vla_rl").rglob("*.py"))
    return {
        str(path)
        for path in files
        if not (ROOT / path).exists() or (ROOT / path).read_bytes() != (copy / path).read_bytes()
    }


@pytest.fixture
def with_a_line(copy: Path) -> Path:
    """The environment of CONTRIBUTING: a file, and two lines."""
    module, lines = blocks_of("How to add an environment")
    (copy / "vla_rl" / "envs" / "line.py").write_text(module, encoding="utf-8")
    imported, union = filter(None, lines.splitlines())
    kinds = copy / "vla_rl" / "envs" / "kinds.py"
    before = kinds.read_text(encoding="utf-8")
    after = re.sub(r"^EnvSection = .*$", f"{imported}\n{union}", before, flags=re.MULTILINE)
    kinds.write_text(after, encoding="utf-8")
    assert set(after.splitlines()) - set(before.splitlines()) == {imported, union}
    return copy


def test_a_new_environment_is_one_file_and_two_lines_and_is_trained_in_and_evaluated(with_a_line: Path) -> None:
    assert changed_files(with_a_line) == {"vla_rl/envs/line.py", "vla_rl/envs/kinds.py"}
    overrides = ["env.name=line", "name=line", "runtime.mode=serial", "budget.optimizer_steps=40"]
    overrides += ["evaluation.episodes_per_task=0", "logging.tensorboard=false"]
    trained = call(with_a_line, "-m", "vla_rl", "train", "toy", *overrides)
    assert "finished after 40 optimizer steps" in trained
    report = json.loads(
        call(with_a_line, "-m", "vla_rl", "eval", "runs/line", "--episodes-per-task", "5", "--serial", "--json")
    )
    assert [(suite["suite"], suite["episodes"]) for suite in report["suites"]] == [("line", 5)]
    assert report["trained_on"] == "line (tasks: 0), sampled initial states"


@pytest.mark.slow
def test_the_checks_of_recipes_and_layers_stay_green_beside_a_new_environment(with_a_line: Path) -> None:
    call(
        with_a_line,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/test_recipes.py",
        "tests/test_layers.py",
    )
