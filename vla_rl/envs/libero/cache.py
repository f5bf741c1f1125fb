"""Per-user folder for generated files, written so that no reader ever sees an incomplete one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from vla_rl.errors import SimulatorError
from vla_rl.files import rename


def cache_root() -> Path:
    """Return `$VLA_RL_CACHE`, else `$XDG_CACHE_HOME/vla_rl`, else `~/.cache/vla_rl`."""
    if own := os.environ.get("VLA_RL_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vla_rl"


def publish_folder(name: str, files: Mapping[PurePosixPath, bytes]) -> Path:
    """Return a folder in the cache with exactly these files, written once and found by its content afterwards.

    The folder's name ends in a digest of the files, so versions live side by side, and it appears by one rename, so
    any number of processes may ask for it at once.

    Args:
        name: first part of the folder's name.
        files: relative path to content.

    Raises:
        SimulatorError: the folder cannot be written.
    """
    digest = hashlib.sha256()
    for path, content in sorted(files.items()):
        digest.update(f"{path}\0{len(content)}\0".encode())
        digest.update(content)
    target = cache_root() / f"{name}-{digest.hexdigest()[:16]}"
    if target.is_dir():
        return target
    with writing_to(target.parent):
        _publish(target, files)
    return target


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn failures to write into a folder of the cache into a `SimulatorError`.

    Raises:
        SimulatorError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise SimulatorError(
            f"files for LIBERO cannot be written to {folder}: {error.strerror or error}. Fix: name a folder that can "
            "be written in VLA_RL_CACHE"
        ) from error


def _publish(target: Path, files: Mapping[PurePosixPath, bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    staging.mkdir()
    try:
        for path, content in files.items():
            destination = staging / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(content)
        rename(staging, target)
    except OSError:
        if not target.is_dir():  # otherwise another process published the same content first
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
