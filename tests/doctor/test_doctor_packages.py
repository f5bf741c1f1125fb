"""Versions against ranges, without importing anything."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vla_rl.doctor import packages
from vla_rl.doctor.packages import check_group, check_pins, check_python, check_torchvision, declared

NEEDS = [
    Requirement("torch>=2.8,<2.14"),
    Requirement("numpy>=2.0,<2.5"),
    Requirement('mujoco==3.3.0; extra == "libero"'),
    Requirement('numba>=0.61,<0.69; extra == "libero"'),
]


@pytest.mark.parametrize(
    ("extra", "versions", "status", "found"),
    [
        (None, {"torch": "2.13.0+cpu", "numpy": "2.0.0"}, "ok", "2 packages"),
        (None, {"torch": "2.14.0", "numpy": "2.0.0"}, "warning", "torch 2.14.0"),
        (None, {"torch": None, "numpy": "2.5"}, "failed", "torch is not installed, numpy 2.5"),
        ("libero", {"mujoco": "3.3.0", "numba": "0.61.1"}, "ok", "2 packages"),
        ("libero", {"mujoco": "3.4.0", "numba": "0.61.1"}, "failed", "mujoco 3.4.0"),
        ("libero", {"mujoco": "3.3.0", "numba": "0.70"}, "warning", "numba 0.70"),
        ("libero", {"mujoco": None, "numba": None}, "failed", "mujoco is not installed, numba is not installed"),
    ],
)
def test_a_range_is_held_and_a_pin_is_more_than_a_range(extra, versions, status, found):
    check = check_group(extra, missing="failed", requirements=NEEDS, version_of=versions.get)
    assert (check.status, check.name) == (status, f"packages: {extra or 'core'}")
    assert check.found.startswith(found)
    assert bool(check.fix) == bool(check.allowed) == (status != "ok")


def test_the_only_package_of_an_extra_is_named():
    needs = [Requirement('deepspeed>=0.17; extra == "deepspeed"')]
    check = check_group("deepspeed", missing="skipped", requirements=needs, version_of={"deepspeed": "0.18"}.get)
    assert check.found == "deepspeed within the tested ranges"


def test_a_package_that_need_not_be_there_does_not_fail():
    assert check_group("libero", missing="skipped", requirements=NEEDS, version_of=lambda _: None).status == "skipped"


def test_every_extra_for_users_is_looked_at_and_some_may_be_left_out():
    needs = [*NEEDS, Requirement('deepspeed>=0.17; extra == "deepspeed"'), Requirement('pytest; extra == "dev"')]
    found = {check.name: check.status for check in packages.check_groups(needs, version_of=lambda _: None)}
    assert found == {"packages: core": "failed", "packages: libero": "failed", "packages: deepspeed": "skipped"}


def test_the_fix_installs_the_extra_whose_packages_are_missing():
    needs = [*NEEDS, Requirement('mlflow>=3; extra == "mlflow"')]
    fixes = {check.name: check.fix for check in packages.check_groups(needs, version_of=lambda _: None)}
    assert fixes["packages: mlflow"] == "pip install 'vla-rl[mlflow]'"
    assert fixes["packages: libero"] == "pip install 'vla-rl[libero]'"
    assert "scripts/setup" in fixes["packages: core"]


def test_the_allowed_range_is_told():
    check = check_group(None, missing="failed", requirements=NEEDS, version_of={"torch": "3.0", "numpy": "2.1"}.get)
    assert check.allowed == "torch<2.14,>=2.8"


def test_the_ranges_are_those_of_pyproject():
    pyproject = Path(packages.__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    python, requirements = declared()
    assert python == project["requires-python"]
    extras = project["optional-dependencies"]
    assert len(requirements) == len(project["dependencies"]) + sum(len(extra) for extra in extras.values())
    mujoco = next(need for need in requirements if need.name == "mujoco")
    assert str(mujoco.specifier) == "==3.3.0"
    assert packages._extra_of(mujoco) == "libero"


def test_without_a_clone_the_ranges_are_those_of_the_installed_distribution(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "SOURCE", tmp_path / "pyproject.toml")
    monkeypatch.setattr("importlib.metadata.metadata", lambda _: {"Requires-Python": ">=3.11"})
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ['mujoco==3.3.0; extra == "libero"'])
    python, (need,) = declared()
    assert (python, str(need.specifier), packages._extra_of(need)) == (">=3.11", "==3.3.0", "libero")


def test_this_python_is_allowed():
    assert check_python().status in ("ok", "warning")


@pytest.mark.parametrize(("version", "status"), [("3.10.9", "failed"), ("3.12.1", "ok")])
def test_python_is_held_to_its_range(monkeypatch, version, status):
    monkeypatch.setattr("platform.python_version", lambda: version)
    assert check_python().status == status


def test_a_python_that_was_not_tested_is_a_warning(monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.14.0")
    monkeypatch.setattr("sys.version_info", (3, 14, 0, "final", 0))
    assert check_python().status == "warning"


@pytest.mark.parametrize(
    ("robosuite", "status", "fix"),
    [("1.4.0", "ok", ""), ("1.5.1", "failed", "pip install --no-deps robosuite==1.4.0;"), (None, "failed", "pip")],
)
def test_the_simulator_allows_one_version(robosuite, status, fix):
    pins = {"mujoco": "3.3.0", "robosuite": "1.4.0"}
    check = check_pins(pins, version_of={"mujoco": "3.3.0", "robosuite": robosuite}.get)
    assert check.status == status
    assert check.fix.startswith(fix)
    assert "mujoco==3.3.0 " not in check.fix


@pytest.mark.parametrize(
    ("vision", "torch", "needs", "status"),
    [
        (None, "2.8.0", [], "ok"),
        ("0.23.0", "2.8.0", ["numpy", "torch==2.8.0"], "ok"),
        ("0.23.0", "2.9.1", ["torch==2.8.0"], "failed"),
        ("0.23.0+cu128", "2.8.0+cu128", ["torch==2.8.0"], "ok"),
        ("0.23.0+cpu", "2.8.0+cu128", ["torch==2.8.0"], "failed"),
        ("0.23.0", "2.8.0+cpu", ["torch==2.8.0"], "ok"),  # a build that does not tell is not accused
        ("0.23.0", None, ["torch==2.8.0"], "skipped"),
    ],
)
def test_torchvision_must_be_built_for_the_torch_that_is_here(vision, torch, needs, status):
    versions = {"torchvision": vision, "torch": torch}
    check = check_torchvision(version_of=versions.get, requires=lambda _: needs)
    assert check.status == status
    assert ("uninstall" in check.fix) == (status == "failed")
