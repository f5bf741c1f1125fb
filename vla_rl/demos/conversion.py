"""Conversion of any data set to LIBERO's regenerated HDF5 layout: one file per task, aligned, pictures not rotated.

A file appears when it is complete. A conversion that is started again keeps existing files and continues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.demos.attributes import SOURCE, copy_environment, write_counts
from vla_rl.demos.conventions import instruction_of_task, task_of_file
from vla_rl.demos.data_errors import DemosError
from vla_rl.demos.episode import Episode, StoredEpisode
from vla_rl.demos.h5_files import new_h5, open_h5, read_attribute, write_datasets
from vla_rl.demos.hdf5 import PICTURES, RESET, Hdf5Reader
from vla_rl.demos.opening import Demos
from vla_rl.files import ASIDE

if TYPE_CHECKING:
    from vla_rl.demos.h5_files import File

MAX_NAME = 240  # bytes; file systems allow 255, and an unfinished file has a longer name
OTHERS_READ = ("obs/joint_states", "states", "robot_states")  # needed only by other readers


@dataclass(slots=True)
class Converted:
    """Result of a conversion."""

    files: list[Path] = field(default_factory=list)
    kept: int = 0  # files that existed already
    episodes: int = 0
    frames: int = 0
    failed: int = 0  # episodes that `keep` left out, of those that it was asked about
    missing: set[str] = field(default_factory=set)  # keys of the layout that the source lacks


def convert_demos(
    demos: Demos,
    out: Path,
    *,
    first: int | None = None,
    keep: Callable[[Episode], bool] | None = None,
    claimed: AbstractContextManager[None] | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Converted:
    """Write the episodes of `demos`, or the `first` of each task, into the folder `out`.

    Args:
        demos: the data set.
        out: folder of the new files.
        first: episodes of each task, the lowest numbers; with `keep` the first ones that it accepts.
        keep: a filter of episodes, called in order and only until `first` are found; a task without any gets no file.
        claimed: keeps other processes from writing into `out`, from the first file on.
        say: called with a line for every task.

    Raises:
        DemosError: the data are broken, or `out` is their own folder or holds another file of a needed name.
    """
    _check_apart(demos, out)
    say(f"{len(demos)} episodes in {demos.path}")
    by_task = _by_task(demos)
    with claimed or nullcontext():
        out.mkdir(parents=True, exist_ok=True)
        return _convert(demos, by_task, out, first=first, keep=keep, say=say)


def _convert(
    demos: Demos,
    by_task: dict[str, list[int]],
    out: Path,
    *,
    first: int | None,
    keep: Callable[[Episode], bool] | None,
    say: Callable[[str], None],
) -> Converted:
    result = Converted()
    for position, (task, places) in enumerate(by_task.items(), 1):
        file = out / f"{task}_demo.hdf5"
        source = _source(demos, places, first=first, is_filtered=keep is not None)
        is_there = file.exists()
        failed = 0
        for left in out.glob(f"{ASIDE}{escape(file.name)}.*"):
            left.unlink()  # of a process that was killed
        if is_there:
            earlier = None if first is None or keep is not None else _source(demos, places[:first])
            _check_same(file, source, earlier)
        else:
            kept, failed = _choose(demos, places, first=first, keep=keep)
            result.failed += failed
            if not kept:
                say(f"{position} of {len(by_task)}: {task}: no episode is left")
                continue
            with new_h5(file) as handle:
                _write(handle, demos, kept, source, result)
        rows = _rows(file)
        result.files.append(file)
        result.kept += is_there
        result.episodes += len(rows)
        result.frames += sum(rows)
        done = "exists already" if is_there else f"{len(rows)} episodes, {sum(rows):,} frames"
        notes = [f"{failed} left out"] if failed else []
        if first is not None and len(rows) < first:
            notes.append(f"fewer than the {first} asked for")
        say(f"{position} of {len(by_task)}: {file.name}: {', '.join([done, *notes])}")
    return result


def _check_apart(demos: Demos, out: Path) -> None:
    """Check that no new file will lie in the data set: HDF5 files beside others are read in their place."""
    own = {demos.path, *(file.parent for file in demos.reader.paths)}
    if out.resolve() in {folder.resolve() for folder in own}:
        raise DemosError(out, "", "the data set itself is in this folder", fix="choose another folder for --out")


def _by_task(demos: Demos) -> dict[str, list[int]]:
    """Return the indices of all episodes by task, in numerical order."""
    found: dict[str, list[int]] = {}
    for index, stored in enumerate(demos.reader):
        _check_name(stored)
        found.setdefault(stored.task, []).append(index)
    return found


def _choose(
    demos: Demos, places: list[int], *, first: int | None, keep: Callable[[Episode], bool] | None
) -> tuple[list[int], int]:
    """Return the episodes of a task to write, and how many the filter left out on the way to the last of them."""
    if keep is None:
        return places[:first], 0
    kept: list[int] = []
    failed = 0
    for place in places:
        if len(kept) == first:
            break
        if keep(demos[place]):
            kept.append(place)
        else:
            failed += 1
    return kept, failed


def _check_name(stored: StoredEpisode) -> None:
    """Check that the name of the file gives the prompt back: the layout stores it nowhere else."""
    name = f"{stored.task}_demo.hdf5"
    gives = "" if "/" in name or len(name.encode()) > MAX_NAME else instruction_of_task(task_of_file(Path(name)))
    if gives != stored.instruction:
        raise DemosError(
            *stored.place,
            "this prompt cannot be stored: the layout stores prompts as file names",
            found=repr(stored.instruction),
            allowed=f"words of letters and digits with single spaces, {MAX_NAME} bytes at most",
            fix="use this data set without converting it",
        )


def _source(demos: Demos, places: list[int], *, first: int | None = None, is_filtered: bool = False) -> str:
    """Return everything that determines the content of a file, all known before a filter is asked.

    Args:
        demos: the data set.
        places: all episodes of the task.
        first: how many of them are wanted.
        is_filtered: some may be left out.
    """
    digest = hashlib.sha256(json.dumps(places).encode()).hexdigest()[:16]  # an attribute holds 64 kB at most
    settings: dict[str, Any] = {"path": str(demos.path.resolve()), "episodes": len(places), "places": digest}
    options = {"gripper": demos.gripper, "rotated": demos.rotated, "drop_no_ops": demos.drops_no_ops}
    if is_filtered:  # files that were written before there was a filter have no such entry
        options["replayed"] = True
    if first is not None:  # likewise
        settings["first"] = first
    return json.dumps(settings | options)


def _check_same(file: Path, source: str, earlier: str | None = None) -> None:
    """Check that a file was made from the same; `earlier` is what an earlier release recorded of it."""
    with open_h5(file) as handle:
        found = handle["data"].attrs.get(SOURCE) if "data" in handle else None
    if found is None or found not in (source, earlier):
        raise DemosError(
            file,
            f"data.attrs[{SOURCE!r}]",
            "exists already, made from something else",
            found=found or "not written by demos convert",
            allowed=source,
            fix="choose another folder for --out, or delete the file",
        )


def _write(handle: File, demos: Demos, places: list[int], source: str, result: Converted) -> None:
    data = handle.create_group("data")
    data.attrs[SOURCE] = source
    has_numbers = isinstance(demos.reader, Hdf5Reader)
    if has_numbers:
        copy_environment(demos[places[0]].stored.place[0], data)
    for ordinal, place in enumerate(places):
        episode = demos[place]
        demo = data.create_group(f"demo_{episode.number if has_numbers else ordinal}")
        if has_numbers and (reset := read_attribute(*episode.stored.place, RESET)):
            demo.attrs[RESET] = reset
        for key, values in _arrays(episode):
            write_datasets(demo, {key: values})
        result.missing |= {key for key in OTHERS_READ if key not in demo}
    write_counts(data)


def _arrays(episode: Episode) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the data sets of one demonstration; pictures one camera at a time, rotated back."""
    state = episode.state.astype(np.float64)
    ends = np.zeros(len(episode), np.uint8)
    ends[-1] = 1
    yield "actions", episode.actions.astype(np.float64)
    yield "obs/ee_states", state[:, :6]
    yield "obs/ee_pos", state[:, :3]
    yield "obs/ee_ori", state[:, 3:6]
    yield "obs/gripper_states", state[:, 6:]
    yield "rewards", ends
    yield "dones", ends
    for key, values in episode.stored.read_extras().items():
        yield key, values[episode.rows]
    for camera, key in PICTURES.items():
        yield key, episode.pictures(camera, range(len(episode)))[:, ::-1, ::-1]


def _rows(file: Path) -> list[int]:
    with open_h5(file) as handle:
        return [len(demo["actions"]) for demo in handle["data"].values()]
