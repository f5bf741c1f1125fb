"""What is built from the clone: wherever an installation lies, its recipes are found, and they are the clone's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {str(path.relative_to(ROOT)): path.read_bytes() for path in (ROOT / "recipes").rglob("*.yaml")}
RECIPES = {name for name in FILES if "/bases/" not in name}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
BUILD_SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel_of(source: Path, folder: Path) -> Path:
    call(*PIP, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, source, cwd=source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build needs of the clone, where the build may leave its traces."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("vla_rl", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(source, tmp_path_factory.mktemp("wheel"))


def test_every_package_of_the_clone_is_named_for_the_build() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "vla_rl").rglob("*.py")}
    assert named == sorted({".".join(folder.parts) for folder in folders} | {"vla_rl.recipes"})


def test_a_wheel_holds_the_live_page(wheel: Path) -> None:
    files = {path.name for path in (ROOT / "vla_rl" / "watch" / "page").iterdir()}
    with zipfile.ZipFile(wheel) as archive:
        assert {Path(name).name for name in archive.namelist() if "watch/page/" in name} == files


def test_a_wheel_holds_the_recipes_of_the_clone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name.removeprefix("vla_rl/"): archive.read(name) for name in archive.namelist() if "/recipes/" in name}
    assert held == FILES


def test_a_wheel_built_from_the_sdist_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    call(sys.executable, "-c", BUILD_SDIST, tmp_path, cwd=source)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = wheel_of(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path)
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


@pytest.mark.parametrize("layout", ["target", "zip"])
def test_an_installation_anywhere_finds_its_own_recipes(wheel: Path, tmp_path: Path, layout: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    place = tmp_path / "target" if layout == "target" else wheel  # a wheel is a zip file that Python can import from
    if layout == "target":
        call(*PIP, "install", "--no-deps", "--no-index", "--target", place, wheel, cwd=empty)

    def program(*arguments: str) -> str:
        return call(sys.executable, "-m", "vla_rl", *arguments, cwd=empty, PYTHONPATH=str(place))

    listed = program("recipes", "list")
    assert {f"    {place}/vla_rl/{name}" for name in RECIPES} == {
        line for line in listed.splitlines() if line.endswith(".yaml")
    }
    assert program("recipes", "validate", "toy") == "toy: valid\n"
    assert program("recipes", "show", "quickstart").startswith("name: quickstart\n")
    assert program("recipes", "show", "libero_10_ppo").startswith("name: libero_10_ppo\n")  # with its base


def test_the_clone_uses_the_folder_that_people_see() -> None:
    shown = call(sys.executable, "-m", "vla_rl", "recipes", "list", cwd=ROOT, PYTHONPATH=str(ROOT))
    assert f"\n    {ROOT}/recipes/toy.yaml\n" in shown
