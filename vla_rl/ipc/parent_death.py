"""End of a process: with its parent, or on a signal that asks it to."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send a child process this signal if its parent dies, for whatever reason. Linux only.

    It persists through `exec`. To the kernel, the thread that started the child is its parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a process to end cleanly.

    SIGINT (Ctrl-C); SIGTERM; SIGUSR1 and SIGUSR2, which batch systems send before the time is up; and SIGHUP of a
    closed terminal, unless `nohup` ignores it.
    """
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
    return tuple(number for number in asked if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)


# They reach every process of a terminal's group or of a batch job; the parent decides what they mean.
FOR_THE_PARENT = frozenset({signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2})


@contextmanager
def shielded() -> Iterator[None]:
    """Start processes that `FOR_THE_PARENT` cannot end: they inherit this thread's mask, which blocks these signals.

    The resource tracker of `multiprocessing`, which ignores some of them by itself, is started here too.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)  # starting it unblocks signals in some versions
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
