"""When a process is to end: with its parent, or because a signal asks it to."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(number: signal.Signals) -> None:
    """In a child: have the kernel send it this signal should its parent die, however that happens. Linux only.

    It holds through `exec`. The kernel takes the thread that started the child for its parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)


def stop_signals() -> tuple[signal.Signals, ...]:
    """Those that ask a process to end well: Ctrl-C, SIGTERM, and a closed terminal unless `nohup` is to survive it."""
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return tuple(number for number in asked if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)
