"""`vla-rl doctor`: what it prints and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from typer.testing import CliRunner

import vla_rl
from vla_rl.cli.main import app
from vla_rl.doctor.record import Check

GOOD = Check("memory", "ok", "32.0 GiB available", "at least 8 GiB")
ODD = Check("torchvision", "warning", "0.1", "0.2", "pip uninstall it")
BAD = Check("simulator versions", "failed", "mujoco 3.4.0", "mujoco==3.3.0", "pip install mujoco==3.3.0")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    checks: list[Check] = []
    monkeypatch.setattr("vla_rl.doctor.examine.examine", lambda: iter(checks))
    return checks


def test_a_machine_that_is_in_order_ends_with_0(found: list[Check]) -> None:
    found += [GOOD, ODD]
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "ok       memory                 32.0 GiB available",
        "warning  torchvision            0.1",
        "                                allowed: 0.2",
        "                                fix: pip uninstall it",
        "2 checks: 0 failed, 1 warning, 0 skipped",
    ]


def test_one_failed_check_ends_with_1(found: list[Check]) -> None:
    found += [GOOD, BAD]
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "fix: pip install mujoco==3.3.0" in result.output


@pytest.mark.parametrize(("checks", "code"), [([GOOD], 0), ([GOOD, BAD], 1)])
def test_json_holds_every_check_and_nothing_else(found: list[Check], checks: list[Check], code: int) -> None:
    found += checks
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == code
    answer = json.loads(result.output)
    assert answer["passed"] is (code == 0)
    assert [check["name"] for check in answer["checks"]] == [check.name for check in checks]
    assert set(answer["checks"][0]) == {"name", "status", "found", "allowed", "fix"}


HEAVY = ("torch", "numpy", "mujoco", "libero", "psutil", "huggingface_hub")
LOADED = f"""
import sys
from vla_rl.cli.start import run
try:
    run()
finally:
    print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", [["doctor"], ["assets"], ["assets", "check"]])
def test_help_imports_nothing_heavy(verb: list[str]) -> None:
    command = [sys.executable, "-c", LOADED, *verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[]"


GONE = ("torch", "functorch", "libero", "hf_libero", "robosuite", "mujoco", "bddl", "transformers", "deepspeed")


@pytest.mark.slow
def test_on_a_machine_without_torch_and_libero_the_doctor_still_answers(tmp_path: Path) -> None:
    """The interpreter below the environment, with the environment's other packages and ours."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(numpy.__file__).parents[1].iterdir():
        if not entry.name.lower().startswith(GONE):
            (packages / entry.name).symlink_to(entry)
    source = Path(vla_rl.__file__).parents[1]
    done = subprocess.run(
        [getattr(sys, "_base_executable", sys.executable), "-m", "vla_rl", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": f"{packages}:{source}", "VLA_RL_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert "torch is not installed" in checks["packages: core"]["found"]
    assert checks["gpus"]["found"].endswith("No module named 'torch'")
    failed = {name for name, check in checks.items() if check["status"] == "failed"}
    assert failed >= {"packages: core", "packages: libero", "simulator versions", "gpus", "import libero"}
    assert all(checks[name]["fix"] for name in failed)
    probes = ("settle probe", "brightness probe", "texture probe", "renderer egl", "renderer osmesa")
    assert {checks[name]["status"] for name in probes} == {"skipped"}
    assert checks["memory"]["status"] in ("ok", "warning")
