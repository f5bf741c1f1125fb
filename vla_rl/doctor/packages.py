"""Checks of Python and package versions against tested ranges, read from metadata: nothing is imported."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vla_rl.doctor.record import Check, Status

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROGRAM = "vla-rl"
SOURCE = Path(__file__).parents[2] / "pyproject.toml"
NEWEST_PYTHON = (3, 13)  # the pinned mujoco has no wheels for later versions
INSTALL = "run scripts/setup in a clone, or pip install 'vla-rl[libero,deepspeed,plots]'"

Versions = Callable[[str], str | None]


def installed_version(package: str) -> str | None:
    """Return the installed version; None if the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def declared() -> tuple[str, list[Requirement]]:
    """Return the range of Python versions, and every requirement with its extra as a marker.

    Read from pyproject.toml in a clone, whose metadata may be older than its source; otherwise from the installed
    distribution.
    """
    from packaging.requirements import Requirement

    if SOURCE.exists():
        return _of_source(SOURCE)
    metadata = importlib.metadata.metadata(PROGRAM)
    return metadata["Requires-Python"] or "", [Requirement(line) for line in importlib.metadata.requires(PROGRAM) or []]


def _of_source(pyproject: Path) -> tuple[str, list[Requirement]]:
    from packaging.requirements import Requirement

    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, packages in project["optional-dependencies"].items():
        lines += [f'{package}; extra == "{extra}"' for package in packages]
    return project["requires-python"], [Requirement(line) for line in lines]


def check_python() -> Check:
    """Check the interpreter's version."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    newest = ".".join(map(str, NEWEST_PYTHON))
    requires, _ = declared()
    allowed = f"{requires}, tested up to {newest}"
    fix = f"make an environment with Python 3.11 to {newest}: PYTHON=python3.12 scripts/setup"
    if not SpecifierSet(requires).contains(version, prereleases=True):
        return Check("python", "failed", version, allowed, fix)
    newer = sys.version_info[:2] > NEWEST_PYTHON
    return Check("python", "warning" if newer else "ok", version, allowed, fix if newer else "")


def check_groups(requirements: Sequence[Requirement], *, version_of: Versions = installed_version) -> list[Check]:
    """Check the packages that are always needed, then those of each extra for users, in pyproject.toml's order.

    Packages that the program itself or LIBERO needs must be installed; the other extras are optional.
    """
    extras = [extra for extra in dict.fromkeys(map(_extra_of, requirements)) if extra != "dev"]
    return [
        check_group(
            extra,
            missing="failed" if extra in (None, "libero") else "skipped",
            requirements=requirements,
            version_of=version_of,
        )
        for extra in extras
    ]


def check_group(
    extra: str | None, *, missing: Status, requirements: Sequence[Requirement], version_of: Versions = installed_version
) -> Check:
    """Check the packages of one extra against their tested ranges.

    Args:
        extra: name in pyproject.toml; None for the packages that the program always needs.
        missing: severity of a package that is not installed.
        requirements: the program's requirements, from `declared`.
        version_of: installed version by package.
    """
    wanted = [need for need in requirements if _extra_of(need) == extra]
    versions = {need.name: version_of(need.name) for need in wanted}
    absent = [need for need in wanted if versions[need.name] is None]
    outside = [
        need
        for need in wanted
        if (found := versions[need.name]) is not None and not need.specifier.contains(found, prereleases=True)
    ]
    name = f"packages: {extra or 'core'}"
    if not absent and not outside:
        found = wanted[0].name if len(wanted) == 1 else f"{len(wanted)} packages, all"
        return Check(name, "ok", f"{found} within the tested ranges")
    wrong = [f"{need.name} is not installed" for need in absent] + [f"{n.name} {versions[n.name]}" for n in outside]
    pinned = any("==" in str(need.specifier) for need in outside)
    status: Status = "failed" if pinned else missing if absent else "warning"
    allowed = ", ".join(f"{need.name}{need.specifier}" for need in (*absent, *outside))
    return Check(name, status, ", ".join(wrong), allowed, f"pip install 'vla-rl[{extra}]'" if extra else INSTALL)


def _extra_of(requirement: Requirement) -> str | None:
    found = re.search(r'extra == "([\w-]+)"', str(requirement.marker or ""))
    return found[1] if found else None


def check_pins(pins: dict[str, str], *, version_of: Versions = installed_version) -> Check:
    """Check the simulator packages that allow exactly one version.

    Args:
        pins: version by package.
        version_of: installed version by package.
    """
    versions = {package: version_of(package) for package in pins}
    found = ", ".join(f"{package} {version or 'is not installed'}" for package, version in versions.items())
    allowed = ", ".join(f"{package}=={version}" for package, version in pins.items())
    if versions == pins:
        return Check("simulator versions", "ok", found, allowed)
    wrong = [f"{package}=={version}" for package, version in pins.items() if versions[package] != version]
    fix = f"pip install --no-deps {' '.join(wrong)}; on other versions LIBERO's scores change silently"
    return Check("simulator versions", "failed", found, allowed, fix)


def check_torchvision(
    *,
    version_of: Versions = installed_version,
    requires: Callable[[str], list[str] | None] = importlib.metadata.requires,
) -> Check:
    """Check that torchvision, if installed, was built for the installed torch.

    The program does not use it, but transformers imports it if it is installed, and a build for another torch makes
    that import fail. Each release names the torch it was built for.
    """
    from packaging.requirements import Requirement

    name, fix = "torchvision", "pip uninstall -y torchvision: nothing here needs it"
    vision, torch = version_of("torchvision"), version_of("torch")
    if vision is None:
        return Check(name, "ok", "not installed, and not needed")
    if torch is None:
        return Check(name, "skipped", f"torchvision {vision}, but no torch")
    built_for = next((need for need in map(Requirement, requires("torchvision") or []) if need.name == "torch"), None)
    found = f"torchvision {vision} with torch {torch}"
    allowed = f"torch{built_for.specifier}" if built_for else ""
    if built_for and not built_for.specifier.contains(torch, prereleases=True):
        return Check(name, "failed", found, allowed, fix)
    ours, theirs = torch.partition("+")[2], vision.partition("+")[2]
    if ours and theirs and ours != theirs:  # one for CPUs, one for CUDA 12.8: torchvision's operators do not register
        return Check(name, "failed", found, f"both built for {ours}", fix)
    return Check(name, "ok", found, allowed)
