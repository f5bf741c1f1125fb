"""Packages for a machine that has no network."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from gpu_check_parts import wheels
from gpu_check_parts.wheels import Target, WheelsError

ROOT = Path(__file__).parents[2]


def make_wheel(folder: Path, name: str, version: str, *, tag: str = "py3-none-any") -> Path:
    """A wheel that pip takes, with one module of the same name."""
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name.lower()}_made_up.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.mark.parametrize(
    ("tag", "python", "machine", "taken"),
    [
        ("py3-none-any", "3.12", "x86_64", True),
        ("py2.py3-none-any", "3.12", "aarch64", True),
        ("cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64", "3.12", "x86_64", True),
        ("cp312-cp312-manylinux_2_17_x86_64", "3.11", "x86_64", False),
        ("cp312-cp312-manylinux_2_17_x86_64", "3.12", "aarch64", False),
        ("cp38-abi3-manylinux_2_17_x86_64", "3.12", "x86_64", True),
        ("cp313-abi3-manylinux_2_17_x86_64", "3.12", "x86_64", False),
    ],
)
def test_a_wheel_runs_where_its_name_says(tag: str, python: str, machine: str, taken: bool) -> None:
    assert Target(python, machine).takes(Path(f"name-1.0-{tag}.whl")) is taken


def test_wheels_are_unpacked_so_that_they_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "wheels", "Gadget", "1.5")
    assert wheels.unpack(tmp_path / "wheels", tmp_path / "site") == ["Gadget-1.5-py3-none-any.whl"]
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    import gadget_made_up

    assert gadget_made_up.VERSION == "1.5"


def test_wheels_of_another_python_are_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "Gadget", "1.5", tag="cp27-cp27m-manylinux1_x86_64")
    with pytest.raises(WheelsError, match=r"Gadget-1.5-cp27.* is not for Python 3.*--prepare DIR --python 3"):
        wheels.unpack(tmp_path / "wheels", tmp_path / "site")


def test_a_folder_without_wheels_and_a_broken_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WheelsError, match="holds no wheels"):
        wheels.unpack(tmp_path, tmp_path / "site")
    (tmp_path / "half-1.0-py3-none-any.whl").write_bytes(b"PK half a file")
    with pytest.raises(WheelsError, match=r"half-1\.0.*cannot be unpacked"):
        wheels.unpack(tmp_path, tmp_path / "site")


def test_what_is_downloaded_lies_within_the_ranges_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder that stands in for the index, with versions above and below the ranges."""
    index = tmp_path / "index"
    for name, versions in {
        "pydantic": ("1.0", "2.11", "99.0"),
        "simplejpeg": ("1.8.2", "99.0"),
        "mujoco": ("3.2.0", "3.3.0", "3.4.0"),
        "PyOpenGL": ("3.1.10",),
    }.items():
        for version in versions:
            make_wheel(index, name, version)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    found = wheels.download(tmp_path / "wheels", Target("3.12"), root=ROOT)
    names = [f"{wheel.name.split('-')[0]} {wheel.name.split('-')[1]}" for wheel in found]
    assert sorted(names) == ["PyOpenGL 3.1.10", "mujoco 3.3.0", "pydantic 2.11", "simplejpeg 1.8.2"]


def test_an_index_that_has_nothing_is_told_by_the_name_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(WheelsError, match="pip could not download pydantic"):
        wheels.download(tmp_path / "wheels", Target("3.12"), root=ROOT)


def test_this_interpreter_is_the_default() -> None:
    assert Target.this_one().python == f"{sys.version_info.major}.{sys.version_info.minor}"
