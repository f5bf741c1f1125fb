"""`manifest.json`: the software, hardware, data and settings of a run, so that its numbers can be traced.

Versions are read from package metadata: nothing heavy is imported, and a package that fails to import is still
recorded. Accelerators are listed only if torch is already loaded in this process.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from vla_rl.container import usable_cores
from vla_rl.files import atomic_write_json

MANIFEST_FILE = "manifest.json"
SCHEMA = 1
PACKAGES = (
    "vla-rl",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "deepspeed",
    "peft",
    "safetensors",
    "numpy",
    "mujoco",
    "robosuite",
    "hf-libero",
    "bddl",
    "metaworld",
    "gymnasium",
)


def write_manifest(
    path: Path,
    *,
    recipe: Mapping[str, Any],
    seeds: Mapping[str, int],
    assets: Mapping[str, Any],
    deviations: Sequence[str],
    extra: Mapping[str, Any],
) -> None:
    """Write the manifest of a run or an evaluation, atomically.

    Args:
        path: the file.
        recipe: the resolved recipe as plain values.
        seeds: every seed, by what it seeds.
        assets: checkpoints, simulator assets and initial states: their paths and what identifies them.
        deviations: one sentence per deviation from the benchmark's protocol; empty if there is none.
        extra: further values of the caller, stored under `extra`.

    Raises:
        TypeError: a value is not JSON.
        ValueError: a number is not finite.
    """
    manifest = {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        **origin(Path(__file__).resolve().parents[2]),
        "system": {"os": _os_name(), "kernel": platform.release(), "machine": platform.machine()},
        "seeds": dict(seeds),
        "assets": dict(assets),
        "deviations": list(deviations),
        "recipe": dict(recipe),
        "extra": dict(extra),
    }
    atomic_write_json(path, manifest)


def origin(folder: Path) -> dict[str, Any]:
    """Return what numbers were made with: versions, hardware, and the state of the source checkout in a folder."""
    return {"versions": versions(), "hardware": hardware(), "source": source_state(folder)}


def versions() -> dict[str, str | None]:
    """Return installed versions by package; None for a package that is not installed."""
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """Describe this machine's processor, memory and (if torch is loaded) accelerators."""
    return {
        "cpu": _cpu_model(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_usable": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerators": _accelerators(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _accelerators() -> list[dict[str, Any]] | None:
    """Return name and memory of each visible GPU; None (unknown) if torch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": str(device.name), "memory_bytes": int(device.total_memory)} for device in devices]


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:  # not Linux, or a minimal image without os-release
        return platform.system()


def source_state(folder: Path) -> dict[str, Any]:
    """Return the Git commit of a source checkout.

    Args:
        folder: the folder that holds the package.

    Returns:
        `commit` (None if the folder is no checkout of its own, as in an installed package) and `dirty` (tracked files
        differ from the commit).
    """
    if not (folder / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=20
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
