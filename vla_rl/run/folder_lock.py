"""Locks of folders and files: one writer for each."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vla_rl.errors import UserError
from vla_rl.files import is_utf8
from vla_rl.reporting.text import printable


def check_name(path: Path, *, option: str) -> None:
    """Check that weights can be written to a folder and read from it.

    Args:
        path: the folder; it need not exist.
        option: command-line option that named it, for messages.

    Raises:
        ValueError: the path is no text.
    """
    if not is_utf8(path):
        raise ValueError(
            f"{option}: expected text in UTF-8, found {printable(str(path))}, from which weights cannot be read; "
            "choose another name, and rename the folder if it is there"
        )


@contextmanager
def claim_folder(path: Path, *, option: str) -> Iterator[None]:
    """Create a folder and lock it against other writers; the kernel releases it when this process dies.

    The lock is on the folder itself, so it adds no file and is independent of the files inside.

    Args:
        path: the folder.
        option: command-line option that named it, for messages.

    Raises:
        UserError: it cannot be created or written to, or another process is writing there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be made ({error}); choose another folder") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"{option}: {path} cannot be written to; choose another folder")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not lock(descriptor):
            raise UserError(
                f"{option}: another process is writing to {path} now. Wait until it ends, or choose another folder"
            )
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Lock an open file or folder against other processes until it is closed; return False if another one has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # network file system without locks
        pass
    return True
