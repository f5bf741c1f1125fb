"""The few small packages that a rented machine with torch lacks: downloaded here, unpacked there.

    with a network      scripts/gpu_check --prepare DIR --python 3.12
    on the machine      scripts/gpu_check --wheels DIR

A wheel is a zip file that only has to be unpacked, so the machine needs neither pip nor a network. Standard library
alone.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

SMALL = ("pydantic", "simplejpeg")  # 3 MB with what pydantic needs: the cell and the toy run need them
DRAWING = ("mujoco", "PyOpenGL")  # 10 MB: the frame that is drawn on the card
ALONE = ("simplejpeg", *DRAWING)  # numpy, which they need, comes with torch
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
DOWNLOAD_S = 300


class WheelsError(Exception):
    """The wheels cannot be had or used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """The machine that the wheels are for."""

    python: str  # like 3.12
    machine: str = "x86_64"

    @classmethod
    def this_one(cls) -> Target:
        """The interpreter that runs."""
        return cls(f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine())

    def takes(self, wheel: Path) -> bool:
        """Whether a wheel's file name says that it runs there."""
        *_, tags, abis, platforms = wheel.stem.split("-")
        major, minor = self.python.split(".")
        pythons = {f"cp{major}{minor}", f"py{major}", f"py{major}{minor}"}
        is_python = bool(pythons & set(tags.split(".")))
        if not is_python and "abi3" in abis.split("."):
            versions = re.findall(rf"cp{major}(\d+)", tags)
            is_python = any(int(version) <= int(minor) for version in versions)
        return is_python and (platforms == "any" or self.machine in platforms)


def download(folder: Path, target: Target, *, root: Path) -> list[Path]:
    """Download the wheels with pip.

    Raises:
        WheelsError: pip or the index does not give them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = requirements(root)
    platforms = [f"--platform={name}_{target.machine}" for name in PLATFORMS]
    for name in (*SMALL, *DRAWING):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--only-binary=:all:", f"--python-version={target.python}", "--implementation=cp", *platforms]
        command += ["--dest", str(folder), *(["--no-deps"] if name in ALONE else []), wanted[name]]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise WheelsError(f"pip did not download {wanted[name]} within {DOWNLOAD_S} s") from error
        if done.returncode != 0:
            raise WheelsError(f"pip could not download {wanted[name]}:\n{done.stderr.strip()}")
    return sorted(folder.glob("*.whl"))


def requirements(root: Path) -> dict[str, str]:
    """Our ranges of the versions, from pyproject.toml, by name."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["libero"]]
    ranges = {re.split(r"[<>=~! ]", line)[0]: line for line in lines}
    return {name: ranges.get(name, name) for name in (*SMALL, *DRAWING)}


def unpack(folder: Path, site: Path) -> list[str]:
    """Unpack every wheel of a folder, to be put on PYTHONPATH.

    Returns:
        Their names.

    Raises:
        WheelsError: there is none, or one is for another Python or machine.
    """
    target = Target.this_one()
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise WheelsError(f"{folder} holds no wheels. Make it with scripts/gpu_check --prepare {folder}")
    wrong = [wheel.name for wheel in wheels if not target.takes(wheel)]
    if wrong:
        raise WheelsError(
            f"{folder}: {', '.join(wrong)} is not for Python {target.python} on {target.machine}. "
            f"Download again: scripts/gpu_check --prepare DIR --python {target.python}"
        )
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        except (zipfile.BadZipFile, OSError) as error:
            raise WheelsError(f"{wheel} cannot be unpacked: {error}") from error
    return [wheel.name for wheel in wheels]
