"""What CONTRIBUTING.md tells to add, added by its own words to a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("vla_rl", "tests", "recipes", "docs", "scripts")  # and every file beside them
SURROGATES = Path("vla_rl/rl/surrogates")
POLICY_FILES = {"vla_rl/policies/chain.py", "vla_rl/policies/chain_network.py", "vla_rl/policies/kinds.py"}


def section_of(title: str) -> str:
    """The text of one section of CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def blocks_of(title: str) -> list[str]:
    """The code of one section of CONTRIBUTING, without its indentation."""
    found = re.findall(r"^( *)```(?:python|diff)\n(.*?)^ *```", section_of(title), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def copy_repository(folder: Path) -> Path:
    """A repository in which anything may be changed."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):  # .git is a file in a worktree
            shutil.copy2(file, folder / file.name)
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy for one test."""
    return copy_repository(tmp_path / "copy")


def call(copy: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Python in the copy, whose package comes before the installed one; the exit code is checked."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-5000:] + done.stderr[-5000:]
    return done


def changed_files(copy: Path) -> set[str]:
    """Files of the package that differ from ours or are new."""
    files = (path.relative_to(copy) for path in (copy / "vla_rl").rglob("*.py"))
    return {
        str(path)
        for path in files
        if not (ROOT / path).exists() or (ROOT / path).read_bytes() != (copy / path).read_bytes()
    }


def replaced(file: Path, before: str, after: str) -> set[str]:
    """Write a file's new text; returns the lines that are new."""
    file.write_text(after, encoding="utf-8")
    return set(after.splitlines()) - set(before.splitlines())


def add_surrogate(copy: Path) -> None:
    """`hard`: a file, and two lines."""
    text = section_of("How to add a surrogate")
    new_file, two_lines = blocks_of("How to add a surrogate")
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


def add_environment(copy: Path) -> None:
    """`line`: a file, and two lines."""
    module, lines = blocks_of("How to add an environment")
    (copy / "vla_rl" / "envs" / "line.py").write_text(module, encoding="utf-8")
    imported, union = filter(None, lines.splitlines())
    kinds = copy / "vla_rl" / "envs" / "kinds.py"
    before = kinds.read_text(encoding="utf-8")
    after = re.sub(r"^EnvSection = .*$", f"{imported}\n{union}", before, flags=re.MULTILINE)
    assert replaced(kinds, before, after) == {imported, union}


def add_policy(copy: Path) -> None:
    """`chain`: two files, and two lines."""
    section, network, lines = blocks_of("How to add a policy")
    (copy / "vla_rl" / "policies" / "chain.py").write_text(section, encoding="utf-8")
    (copy / "vla_rl" / "policies" / "chain_network.py").write_text(network, encoding="utf-8")
    imported, union = filter(None, lines.splitlines())
    kinds = copy / "vla_rl" / "policies" / "kinds.py"
    before = kinds.read_text(encoding="utf-8")
    after = re.sub(r"^AnyPolicy = .*$", union, before, flags=re.MULTILINE)
    after = after.replace(
        "from vla_rl.policies.kind ", f"{imported}\nfrom vla_rl.policies.kind "
    )  # sorted, as ruff asks
    assert replaced(kinds, before, after) == {imported, union}


def add_tracker(copy: Path) -> None:
    """`lines`: a file, and two lines."""
    module, lines = blocks_of("How to add a tracker")
    (copy / "vla_rl" / "tracking" / "lines.py").write_text(module, encoding="utf-8")
    imported, field = filter(None, lines.splitlines())
    room = copy / "vla_rl" / "tracking" / "__init__.py"
    before = room.read_text(encoding="utf-8")
    after = before.replace("from vla_rl.tracking.mlflow", f"{imported}\nfrom vla_rl.tracking.mlflow")
    after = after.replace("    mlflow: Mlflow", f"{field}\n    mlflow: Mlflow")
    assert replaced(room, before, after) == {imported, field}
