"""Tests for GPUs run where little more than torch is installed, and `scripts/test --gpu` knows all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARK = "mark." + "gpu"
FILES = [
    path
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
    if MARK in path.read_text(encoding="utf-8") and path.parent.name != "gpu_check"  # which writes such files
]

BARE = """
import sys

for name in (
    "bddl", "deepspeed", "hypothesis", "imageio_ffmpeg", "libero", "matplotlib", "metaworld", "mujoco", "PIL",
    "robosuite", "simplejpeg", "tensorboard",
):
    sys.modules[name] = None  # an import fails, and whoever looks for it finds nothing
"""


def test_the_script_names_every_file_that_holds_such_a_test() -> None:
    (command,) = [
        line
        for line in (ROOT / "scripts" / "test").read_text(encoding="utf-8").splitlines()
        if "-m pytest -m gpu" in line
    ]
    named = [ROOT / word for word in command.split() if word.startswith("tests/")]
    assert FILES and all(any(file.is_relative_to(place) for place in named) for file in FILES)


def test_they_are_collected_without_simulator_or_plugins(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(BARE, encoding="utf-8")
    environment = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
    }
    command = [sys.executable, "-m", "pytest", "-p", "bare", "-m", "gpu", "-q", *map(str, FILES)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stdout
