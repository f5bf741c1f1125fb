"""Identity of an installation, as far as it decides about episodes: equal on two machines, or their episodes differ."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

OwnIdentity = Callable[[], Mapping[str, str]]  # of an environment: `EnvPlan.identity`
CODE = ("envs", "remote", "types.py", "section.py", "files.py", "errors.py", "libero_suites.py")  # runs on both sides
ABSENT = "not installed"


def identity_here(own: OwnIdentity) -> dict[str, str]:
    """Return everything on this machine that must be the same where its environments are simulated.

    Args:
        own: what the environment adds.
    """
    found = {
        "Python": ".".join(map(str, sys.version_info[:2])),
        "vla_rl": f"{version_of('vla-rl')}, code {code_digest()}",
        "ray": version_of("ray"),
        "numpy": version_of("numpy"),
    }
    return found | dict(own())


def version_of(package: str) -> str:
    """Return the installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ABSENT


def code_digest() -> str:
    """Return a digest of the part of this program that runs on both sides."""
    root = Path(__file__).parents[1]
    modules = [root / place for place in CODE if place.endswith(".py")]
    files = sorted([*modules, *(file for place in CODE for file in (root / place).rglob("*.py"))])
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Return in words what differs; empty if nothing does."""
    names = dict.fromkeys([*here, *there])
    return [
        f"{name}: {there.get(name, ABSENT)} there, {here.get(name, ABSENT)} here"
        for name in names
        if here.get(name, ABSENT) != there.get(name, ABSENT)
    ]
