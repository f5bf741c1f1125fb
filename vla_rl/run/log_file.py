"""File into which a process of a run logs, beside the live view."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vla_rl.reporting.streams import losses


class _LogFile(logging.FileHandler):
    """Log file that tolerates a full disk: only its own lines are lost."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Ignore a full disk; report any other error, which is a bug."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file; data that cannot be written any more is lost."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Send what the program logs in this process to a file, and not across the live view."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logger = logging.getLogger("vla_rl")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    for loss in losses():  # terminal losses from before the log existed
        logger.warning("%s", loss)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
