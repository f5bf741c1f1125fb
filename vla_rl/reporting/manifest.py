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
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from vla_rl.container import usable_cores
from vla_rl.files import atomic_write_json

MANIFEST_FILE = "manifest.json"
SCHEMA = 1
AFTER, EARLIER = "after_optimizer_step", "earlier_starts"  # keys of a run's manifest
DIRECTORY = "directory"  # key of the one that a command was given in, to which its relative paths belong
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
    after_optimizer_step: int | None = None,
    earlier: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the manifest of a run or an evaluation, atomically.

    A start that is made of the same as the one before continues it, and only the later is recorded.

    Args:
        path: the file.
        recipe: the resolved recipe as plain values.
        seeds: every seed, by what it seeds.
        assets: checkpoints, simulator assets and initial states: their paths and what identifies them.
        deviations: one sentence per deviation from the benchmark's protocol; empty if there is none.
        extra: further values of the caller, stored under `extra`.
        after_optimizer_step: optimizer steps that a run had made before this start; None: of an evaluation.
        earlier: manifests of a run's starts before, oldest first; see `earlier_starts`.

    Raises:
        TypeError: a value is not JSON.
        ValueError: a number is not finite.
    """
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        DIRECTORY: str(Path.cwd()),
        **origin(Path(__file__).resolve().parents[2]),
        "system": {"os": _os_name(), "kernel": platform.release(), "machine": platform.machine()},
        "seeds": dict(seeds),
        "assets": dict(assets),
        "deviations": list(deviations),
        "recipe": dict(recipe),
        "extra": dict(extra),
    }
    if after_optimizer_step is not None:
        manifest[AFTER] = after_optimizer_step
    if earlier:
        manifest["deviations"] = list(dict.fromkeys([*earlier[-1].get("deviations", ()), *deviations]))
        if _made_of(earlier[-1]) == _made_of(manifest):
            manifest[AFTER] = earlier[-1].get(AFTER, 0)
            earlier = earlier[:-1]
        manifest[EARLIER] = [dict(start) for start in earlier]
    atomic_write_json(path, manifest)


def directory_of(manifest: Mapping[str, Any]) -> Path | None:
    """Return the directory that a run was started in; None if its manifest does not tell, as older ones do not."""
    directory = manifest.get(DIRECTORY)
    return Path(directory) if isinstance(directory, str) else None


def earlier_starts(manifest: Mapping[str, Any], *, before: int) -> list[dict[str, Any]]:
    """Return the starts of a run that contributed to its first optimizer steps, oldest first, each as its manifest.

    Args:
        manifest: of the newest start.
        before: number of these steps.
    """
    own = {key: value for key, value in manifest.items() if key != EARLIER}
    starts = [*manifest.get(EARLIER, ()), own]
    return [start for start in starts if start.get(AFTER, 0) < before]


def _made_of(manifest: Mapping[str, Any]) -> list[Any]:
    return [manifest.get(key) for key in ("recipe", "source", "versions", "assets")]


def changes_in_words(starts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for every start of a run that went on with another recipe or program than the one before.

    Args:
        starts: their manifests, oldest first.
    """
    found = []
    for before, after in pairwise(starts):
        old, new = _settings(before), _settings(after)
        names = [name for name in (old | new) if old.get(name) != new.get(name)]
        changes = [f"{name} {_shown(new, name)} instead of {_shown(old, name)}" for name in names]
        if changes:
            found.append(f"From optimizer step {after.get(AFTER, 0) + 1:,} on: {', '.join(changes)}.")
    return found


def _settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    source, versions = manifest.get("source") or {}, manifest.get("versions") or {}
    return {**by_dotted_name(manifest.get("recipe") or {}), **versions, "commit of vla-rl": source.get("commit")}


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return str(settings[name]) if settings.get(name) is not None else "none"


def by_dotted_name(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections, each by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= by_dotted_name(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


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
