"""File writing that is atomic: written to a temporary file, fsynced, renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that readers see the old file or the new one, never a part, even after a power cut.

    Args:
        path: the file; its folder is created if it is missing.
        content: all of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: object) -> None:
    """Write indented JSON with `atomic_write_bytes`.

    Raises:
        ValueError: a number is not finite (JSON cannot represent it).
        TypeError: a value is not JSON.
    """
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the object that a JSON file holds.

    Raises:
        ValueError: there is no such file, or it holds something else; names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: expected a JSON object, found no such file") from error
    except ValueError as error:
        raise ValueError(
            f"{path}: expected JSON, found something else ({error}); put the file back or remove it"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{path}: expected a JSON object, found {type(value).__name__}; put the file back or remove it"
        )
    return value


def directory_bytes(folder: Path) -> int:
    """Return the total size in bytes of all regular files below `folder`; files that vanish meanwhile count as 0."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(root) / name).st_size
            except FileNotFoundError:
                continue
    return total


def _sync_folder(folder: Path) -> None:
    """Fsync the folder, which makes the rename itself durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
