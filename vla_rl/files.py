"""Atomic and durable writing of files and folders: written aside, flushed to disk, renamed.

The only module that calls fsync and rename.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ASIDE = ".tmp-"  # prefix of a file or folder that is not finished


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` for any writer, also one that makes private files as safetensors does.

    At the end the file gets the mode of an ordinary new file, is flushed to disk and renamed to `path`; on any error it
    is removed, and `path` keeps its content.

    Args:
        path: the file; its folder is created if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{ASIDE}{path.name}.{os.getpid()}")
    try:
        aside.touch()
        usual = aside.stat().st_mode & 0o777
        yield aside
        aside.chmod(usual)
        flush(aside)
        rename(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that readers see the old file or the new one, never a part, even after a power cut.

    Args:
        path: the file; its folder is created if it is missing.
        content: all of the file.
    """
    with written_aside(path) as aside:
        aside.write_bytes(content)


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with `atomic_write_bytes`.

    Bytes of a file's name that are no UTF-8 are spelled out with a backslash, which JSON reads back as the same name.
    """
    atomic_write_bytes(path, text.encode(errors="backslashreplace"))


def atomic_write_json(path: Path, value: object) -> None:
    """Write indented JSON with `atomic_write_bytes`.

    Raises:
        ValueError: a number is not finite (JSON cannot represent it).
        TypeError: a value is not JSON.
    """
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def ordinary(path: Path) -> Path:
    """Return the path if it leads to an ordinary file or to nothing; opening a pipe would wait for its writer.

    Raises:
        ValueError: it leads to something else.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a file, found something else; remove it")
    return path


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the object that a JSON file holds.

    Raises:
        ValueError: there is no such file, or it holds something else; names the file.
    """
    try:
        value = json.loads(ordinary(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: expected a JSON object, found no such file") from error
    except (ValueError, RecursionError) as error:  # the latter for thousands of brackets
        raise ValueError(
            f"{path}: expected JSON, found something else ({error}); put the file back or remove it"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{path}: expected a JSON object, found {type(value).__name__}; put the file back or remove it"
        )
    return value


def is_utf8(path: Path) -> bool:
    """Return whether a path is text; others can be opened here, but not by libraries that take text alone."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


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


@contextmanager
def folder_written_aside(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which is renamed to it at the end and removed on any error.

    What an earlier, killed attempt left aside is removed first. The files directly in the folder get the mode of
    ordinary new files.

    Raises:
        ValueError: `folder` exists, or cannot be made.
    """
    aside = folder.with_name(f"{ASIDE}{folder.name}")
    try:
        if folder.exists():
            raise ValueError(f"{folder} exists and nothing is written over it; name a new directory")
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error}); choose another directory") from error
    try:
        yield aside
        for path in aside.iterdir():
            if path.is_file():
                path.chmod(aside.stat().st_mode & 0o666)
        flush_tree(aside)
        rename(aside, folder)
    except BaseException:  # also Ctrl-C
        shutil.rmtree(aside)
        raise


def rename(path: Path, target: Path) -> None:
    """Rename a file or folder within one file system, and flush the folder so that a power cut does not undo it."""
    path.replace(target)
    flush(target.parent)


def flush_tree(folder: Path) -> None:
    """Flush a folder to disk, with every file and folder below."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to disk, so that a rename never outlives its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
