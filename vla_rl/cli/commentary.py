"""Distinction of output that is a verb's result from comments on results that are in files."""

from __future__ import annotations

_is_commentary = False


def only_comments() -> None:
    """Declare that further output is not a result: results are in files, and a lost line does not matter."""
    from vla_rl.reporting.streams import drop_what_nobody_reads

    global _is_commentary
    _is_commentary = True
    drop_what_nobody_reads()


def is_commentary() -> bool:
    """Return whether `only_comments` was called."""
    return _is_commentary
