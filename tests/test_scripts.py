"""The scripts: what `scripts/setup` does when there is nothing to do, and when there is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELL_SCRIPTS = [ROOT / "scripts" / name for name in ("setup", "quickstart", "test")] + [ROOT / ".ci" / "run"]

FAKE_PYTHON = """#!/bin/sh
# Stands in for the environment's interpreter: notes every call, passes every check, installs nothing.
echo "$*" >> "$CALLS"
case "$*" in
  "-m pytest"*) echo "with $PYTHONPATH" >> "$CALLS" ;;
  *importlib.metadata*) echo torch==1.0 ;;
  "- torch"*) echo "torch>=0.9" ;;
  "- "*) cat > /dev/null ;;
  -) cat > /dev/null; exit $RENDERS ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the scripts and an environment that pretends."""
    (tmp_path / "scripts").mkdir()
    for script in ("setup", "test"):
        shutil.copy(ROOT / "scripts" / script, tmp_path / "scripts" / script)
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON, encoding="utf-8")
    python.chmod(0o755)
    return tmp_path


def setup(
    clone: Path, *arguments: str, renders: bool = True, script: str = "setup"
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a script without apt-get in reach; returns what happened and the interpreter's calls."""
    calls = clone / "calls"
    calls.write_text("", encoding="utf-8")
    tools = clone / "tools"
    tools.mkdir(exist_ok=True)
    for tool in ("bash", "dirname", "cat", "cksum", "cut", "rm", "id", "sh", "mktemp"):
        link, real = tools / tool, shutil.which(tool)
        if real and not link.exists():
            link.symlink_to(real)
    done = subprocess.run(
        [str(tools / "bash"), str(clone / "scripts" / script), *arguments],
        env={"PATH": str(tools), "CALLS": str(calls), "RENDERS": "0" if renders else "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done, calls.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_that_parses(script: Path) -> None:
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n# ")
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)


def test_a_second_setup_does_nothing(clone: Path) -> None:
    first, calls = setup(clone)
    assert (first.returncode, first.stderr) == (0, "")
    assert any("pip" in call for call in calls)
    second, calls = setup(clone)
    assert (second.returncode, calls) == (0, [])
    assert "up to date" in second.stdout


def test_torchrl_is_installed_into_a_temporary_folder_without_its_torch(clone: Path) -> None:
    done, calls = setup(clone, "--with-torchrl", "-k", "choice", script="test")
    assert (done.returncode, done.stderr) == (0, "")
    install, tests, path = calls[-3:]
    options, _, rest = install.partition(" --target ")
    folder, *packages = rest.split()
    assert options.startswith("-m pip ") and options.endswith(" --no-deps")
    assert not any(package.startswith(("torch=", "torch>")) or package == "torch" for package in packages)
    assert tests == "-m pytest -rs tests/learner/test_against_torchrl.py -k choice"
    assert path == f"with {folder}"
    assert not Path(folder).exists()


def test_torch_comes_first_and_is_then_held(clone: Path) -> None:
    _, calls = setup(clone)
    installs = [call for call in calls if " install " in call]
    assert "torch>=0.9" in installs[0]
    assert (clone / ".venv" / "constraints.txt").read_text(encoding="utf-8") == "torch==1.0\n"
    for install in installs[1:]:
        assert "--constraint .venv/constraints.txt" in install or "--no-deps" in install
    assert any("--no-deps robosuite==1.4.0 hf-libero==0.1.4 bddl==1.0.1" in install for install in installs)


def test_a_changed_pyproject_or_the_tests_tools_are_installed(clone: Path) -> None:
    setup(clone)
    assert setup(clone, "--dev")[1], "the tests' tools were not there"
    assert not setup(clone)[1], "an environment with the tests' tools serves those who did not ask for them"
    with (clone / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    assert setup(clone)[1]


def test_without_a_renderer_setup_says_what_to_do_and_looks_again(clone: Path) -> None:
    done, _ = setup(clone, renders=False)
    assert done.returncode == 0
    assert "WARNING: no EGL or OSMesa library works here" in done.stdout
    assert setup(clone, renders=False)[1]


def test_an_unknown_option_is_refused(clone: Path) -> None:
    done, calls = setup(clone, "--fast")
    assert (done.returncode, calls) == (2, [])
    assert "usage" in done.stderr
