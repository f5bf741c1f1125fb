"""One writer per folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vla_rl.errors import UserError


@contextmanager
def claim_folder(path: Path, *, option: str) -> Iterator[None]:
    """Make a folder and hold it against other writers; the kernel lets go of it when this process dies.

    The lock is on the folder itself, so nothing appears in it, and it stays where files inside come and go.

    Args:
        path: the folder.
        option: of the command line that named it, for messages.

    Raises:
        UserError: it cannot be made or written to, or a process that lives is writing there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be made ({error}); choose another folder") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"{option}: {path} cannot be written to; choose another folder")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{option}: another process is writing to {path} now. Wait for its end, or choose another folder"
        ) from None
    except OSError:  # a network file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)
