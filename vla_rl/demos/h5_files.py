"""HDF5 files: the only module that opens, reads and writes them. Errors of h5py become errors with file and key."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.demos.data_errors import DemosError, damaged, extra_needed
from vla_rl.files import written_aside

if TYPE_CHECKING:
    from h5py import Dataset as Dataset
    from h5py import File as File
    from h5py import Group as Group

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # system errors that only writing meets
LOCKED = "unable to lock file"  # in HDF5's message
UNLOCK = (
    "end the program that has it open to write; on a file system without locks, `export HDF5_USE_FILE_LOCKING=FALSE`"
)
READABLE = "HDF5 files as LIBERO's scripts write them"


@contextmanager
def open_h5(file: Path) -> Iterator[File]:
    """Open an HDF5 file for reading.

    Raises:
        DemosError: it is not an HDF5 file, or it is truncated, or another program is writing it.
        UserError: h5py is not installed.
    """
    with extra_needed("reading HDF5 files"):
        import h5py
    try:
        handle = h5py.File(file, "r")
    except OSError as error:
        if LOCKED in str(error):
            raise DemosError(file, "", "cannot be locked", found=error, fix=UNLOCK) from error
        raise damaged(file, "cannot be opened as HDF5", found=error, allowed=READABLE) from error
    with handle:
        try:
            yield handle
        except DemosError:
            raise
        except (OSError, RuntimeError, KeyError) as error:  # what h5py raises when it follows a broken link
            if _number_of(error) in NO_ROOM:  # of another file, which is being written from this one
                raise
            raise damaged(file, "cannot be read as HDF5", found=error, allowed=READABLE) from error


def read_array(group: Group, key: str, rows: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """Read a data set of `group`, or some of its rows; `rows` ascend.

    Raises:
        DemosError: it is missing, not a data set, or not readable.
    """
    dataset = find(group, key)
    try:
        if rows is None:
            return np.asarray(dataset[()])
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):  # one block: far faster than a list of rows
            return np.asarray(dataset[int(rows[0]) : int(rows[-1]) + 1])
        return np.asarray(dataset[rows])
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise DemosError(
            group.file.filename,
            f"{group.name}/{key}".lstrip("/"),
            "cannot be read",
            found=str(error),
            fix="the file is damaged: fetch it again",
        ) from error


def find(group: Group, key: str) -> Dataset:
    """Return the data set of that name.

    Raises:
        DemosError: there is none.
    """
    import h5py

    try:
        item = group.get(key)
        present = sorted(group)
    except (OSError, RuntimeError, KeyError) as error:
        item, present = None, [str(error)]
    if not isinstance(item, h5py.Dataset):
        raise DemosError(
            group.file.filename,
            f"{group.name}/{key}".lstrip("/"),
            "is missing",
            found=", ".join(present) or "nothing",
            allowed=READABLE,
            fix="record or convert the dataset with this key",
        )
    return item


def find_group(parent: Group, key: str) -> Group:
    """Return the group of that name, which exists.

    Raises:
        DemosError: it is something else.
        KeyError: there is nothing, as where a link is broken.
    """
    import h5py

    item = parent[key]
    if not isinstance(item, h5py.Group):
        raise DemosError(
            parent.file.filename,
            f"{parent.name}/{key}".lstrip("/"),
            "must be a group",
            found="a data set" if isinstance(item, h5py.Dataset) else "a type",
            allowed=READABLE,
            fix="other layouts cannot be read",
        )
    return item


@contextmanager
def new_h5(file: Path) -> Iterator[File]:
    """Write an HDF5 file atomically: it appears under its name when complete, or not at all.

    Raises:
        OSError: the disk is full.
        UserError: h5py is not installed.
    """
    with extra_needed("writing HDF5 files"):
        import h5py
    with written_aside(file) as aside:
        try:
            with h5py.File(aside, "w") as handle:
                yield handle
        except (OSError, RuntimeError) as error:  # on a full disk closing fails too, and hides the first error
            number = _number_of(error) or _number_of(error.__context__)
            if number is None or number not in NO_ROOM:
                raise
            raise OSError(number, os.strerror(number), str(file)) from error


def _number_of(error: BaseException | None) -> int | None:
    """Return the system's number of an error; HDF5 tells it in the message."""
    found = re.search(r"errno = (\d+)", str(error))
    if found:
        return int(found[1])
    return error.errno if isinstance(error, OSError) else None


def write_datasets(group: Group, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as data sets of `group`."""
    for key, values in arrays.items():
        group.create_dataset(key, data=values)


def copy_group(source: Group, target: Group, name: str) -> None:
    """Copy a group with everything in it, from one file to another, under a new name."""
    source.file.copy(source, target, name=name)


def read_attribute(file: Path | str, group: str, name: str) -> str:
    """Return an attribute of a group; an empty text if there is none."""
    with open_h5(Path(file)) as handle:
        return str(handle[group].attrs.get(name, ""))


def check_installed() -> None:
    """Check that HDF5 files can be written.

    Raises:
        UserError: h5py is not installed.
    """
    with extra_needed("writing HDF5 files"):
        import h5py  # noqa: F401
