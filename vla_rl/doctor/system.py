"""Checks of memory, disks and folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_rl.doctor.record import Check, Status
from vla_rl.envs.libero.cache import cache_root
from vla_rl.ipc.memory_check import available_memory
from vla_rl.ipc.shared_arrays import Field, SharedArrays

GIB = 2**30
MEMORY_WARNING = 8 * GIB


def check_shared_memory() -> Check:
    """Check one megabyte of memory that processes share."""
    fault = _try_shared_memory()
    if not fault:
        return Check("shared memory", "ok", "a test block of 1 MiB holds what was written")
    fix = "where it is not permitted: allow the system call memfd_create in the container's seccomp profile"
    return Check("shared memory", "failed", f"a test block failed: {fault}", "memory without a name", fix)


def _try_shared_memory() -> str:
    try:
        with SharedArrays.create("doctor", [Field("probe", (2**20,), "uint8")], poison=False) as arrays:
            arrays["probe"][:] = 7
            whole = int(arrays["probe"].sum(dtype=np.int64)) == 7 * 2**20
    except (OSError, ValueError) as error:
        return str(error)
    return "" if whole else "it does not hold what was written"


def check_memory() -> Check:
    """Check the memory that this process could take, a container's limit included."""
    free = available_memory()
    short = free < MEMORY_WARNING
    fix = "lower rollout.num_workers and replay.capacity; a 7B policy needs 16 GiB for its weights alone"
    allowed = f"at least {MEMORY_WARNING // GIB} GiB"
    return Check("memory", "warning" if short else "ok", f"{_gib(free)} available", allowed, fix if short else "")


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Use of a folder that needs space."""

    folder: Path  # may not exist yet
    wanted: int  # bytes; less is a warning
    needed: int  # bytes; less is a failure
    fix: str


def disk_uses(variables: Mapping[str, str] = os.environ) -> dict[str, DiskUse]:
    """Return the folders that take much space, by use: runs, the program's cache, and checkpoints of a model hub."""
    home = Path(variables.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = variables.get("HF_HUB_CACHE") or Path(variables.get("HF_HOME") or home / "huggingface") / "hub"
    return {
        # One checkpoint of a 7B policy's adapter with its replay ring takes a GiB or more.
        "runs": DiskUse(Path.cwd(), 10 * GIB, GIB, "work in a folder on another disk"),
        "cache": DiskUse(cache_root(), GIB, GIB // 10, "name another folder in VLA_RL_CACHE"),  # LIBERO's assets
        "model hub": DiskUse(Path(hub), 20 * GIB, 0, "name another folder in HF_HOME"),  # a 7B policy takes 15 GiB
    }


def check_disk(name: str, use: DiskUse) -> Check:
    """Check the space in a use's folder, or where it will be created."""
    free = shutil.disk_usage(_nearest(use.folder)).free
    status: Status = "failed" if free < use.needed else "warning" if free < use.wanted else "ok"
    fix = "" if status == "ok" else f"free some, or {use.fix}"
    return Check(f"disk: {name}", status, f"{_gib(free)} free in {use.folder}", f"at least {_gib(use.wanted)}", fix)


def check_folders(folders: Mapping[str, tuple[Path, str]]) -> Check:
    """Check that files can be created in every folder that the program writes to.

    Args:
        folders: folder and fix, by use.
    """
    faults = {what: fault for what, (folder, _) in folders.items() if (fault := _write_fault(folder))}
    if not faults:
        found = ", ".join(f"{what} {folder}" for what, (folder, _) in folders.items())
        return Check("folders", "ok", found)
    found = "; ".join(f"{what}: {fault}" for what, fault in faults.items())
    return Check("folders", "failed", found, "writable", "; ".join(folders[what][1] for what in faults))


def _write_fault(folder: Path) -> str:
    """Return why no file can be created there; leaves nothing behind."""
    existing = _nearest(folder)
    if existing != folder:
        return "" if os.access(existing, os.W_OK | os.X_OK) else f"{folder} cannot be made in {existing}"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder}: {error.strerror or error}"


def _nearest(folder: Path) -> Path:
    """Return the folder itself, or the nearest existing one above it, as far as this user can see."""
    return next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))  # noqa: PTH110 - raises never


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
