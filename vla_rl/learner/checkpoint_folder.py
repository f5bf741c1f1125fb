"""Files of a checkpoint folder: written durably, listed in a manifest, verified against it."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vla_rl.files import ASIDE, atomic_write_json, read_json_object, rename

CHECKPOINTS = "checkpoints"  # folder of all checkpoints in a run's
MANIFEST = "manifest.json"
PARTIAL_PREFIX = ASIDE
REPLACED_PREFIX = f"{PARTIAL_PREFIX}old-"  # a checkpoint that a save of the same clock moved aside
REMOVED_PREFIX = f"{PARTIAL_PREFIX}gone-"

_BLOCK = 1 << 20


def write_manifest(folder: Path) -> None:
    """List every file with its size and CRC-32, durably; the manifest is the last file of a checkpoint."""
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    atomic_write_json(folder / MANIFEST, {"files": entries})


def problem_of(folder: Path) -> str | None:
    """Return why a folder is not a complete checkpoint; None if it is one."""
    try:
        entries = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, {entry['bytes']} were written"
        if _crc32(path) != entry["crc32"]:
            return f"{name} is damaged: its checksum differs from the one in {MANIFEST}"
    return None


def replace_folder(partial: Path, final: Path) -> None:
    """Rename a finished folder to its final name, after moving aside an existing one (same clock, saved twice).

    After a crash between the two renames `replaced_folders` finds the existing one.
    """
    old = final.with_name(f"{REPLACED_PREFIX}{final.name}")
    if final.exists():
        if old.exists():  # left by a kill while it was removed
            shutil.rmtree(old)
        rename(final, old)
    rename(partial, final)
    if old.exists():
        shutil.rmtree(old)


def replaced_folders(checkpoints: Path) -> dict[Path, Path]:
    """Return checkpoints whose successor is missing because the save was killed: current and final place."""
    moved = checkpoints.glob(f"{REPLACED_PREFIX}*")
    homes = {path: path.with_name(path.name.removeprefix(REPLACED_PREFIX)) for path in moved}
    return {path: home for path, home in homes.items() if not home.exists()}


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint; a crash meanwhile leaves nothing that a search takes for a checkpoint."""
    doomed = folder.with_name(f"{REMOVED_PREFIX}{folder.name}")
    rename(folder, doomed)
    shutil.rmtree(doomed)


def remove_part(folder: Path, name: str) -> None:
    """Remove from a checkpoint what one writer wrote on every rank; the rest remains a complete checkpoint.

    Args:
        folder: the checkpoint.
        name: name of the writer, and of its folder in those of the ranks.

    Raises:
        ValueError: the checkpoint's manifest is missing or broken.
    """
    parts = [path for path in folder.glob(f"rank_*/{name}") if path.is_dir()]
    listed = read_json_object(folder / MANIFEST)["files"]
    doomed = {str(path.relative_to(folder)) for part in parts for path in part.rglob("*")}
    # The manifest first: a checkpoint may hold more than it lists, but not less.
    atomic_write_json(folder / MANIFEST, {"files": {file: listed[file] for file in listed if file not in doomed}})
    for part in parts:
        shutil.rmtree(part)


@contextmanager
def held(folder: Path, names: Iterable[str], *, within: Path) -> Iterator[Path]:
    """Keep some files of a checkpoint, also if its run removes it meanwhile.

    They are hard links, and copies only where those are impossible.

    Args:
        folder: the checkpoint.
        names: its files.
        within: folder of this process alone.

    Yields:
        A folder of the same name that is a complete checkpoint of these files, as they were listed when written. It is
        removed at the end, or by the next call after a kill.

    Raises:
        FileNotFoundError: the checkpoint was removed before.
    """
    aside = within / f"{PARTIAL_PREFIX}held"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        place = aside / folder.name
        place.mkdir(parents=True)
        listed = json.loads((folder / MANIFEST).read_text())["files"]
        for name in names:
            try:
                os.link((folder / name).resolve(strict=True), place / name)  # of a link the file that it names
            except FileNotFoundError:
                raise
            except OSError:  # another file system, or one without links
                shutil.copyfile(folder / name, place / name)
        atomic_write_json(place / MANIFEST, {"files": {name: listed[name] for name in names}})
        yield place
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def clear_up(checkpoints: Path) -> None:
    """Remove leftovers of killed saves and restore a checkpoint that was being replaced."""
    for path, home in replaced_folders(checkpoints).items():
        rename(path, home)
    for path in checkpoints.glob(f"{PARTIAL_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
