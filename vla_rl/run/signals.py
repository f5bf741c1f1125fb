"""Signals that ask to end: as a request between two steps, or as Ctrl-C where there are no steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from vla_rl.ipc.lifeline import stop_signals


class StopRequest:
    """Catches the first SIGINT, SIGTERM or SIGHUP while it is entered; another SIGINT or SIGTERM interrupts at once.

    A hangup comes from the kernel and from the shell, so its second says nothing. The terminal is gone by then and
    writing to it fails: what would go there goes nowhere from then on. Under `nohup` there is no hangup.

    Signals can be caught in the main thread alone; elsewhere nothing is caught.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, object] = {}
        self._terminals: list[int] = []  # descriptors

    def __enter__(self) -> Self:
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        for number in stop_signals():
            try:
                self._previous[number] = signal.signal(number, self._catch)
            except ValueError:  # not the main thread
                return self
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._fall_silent()
        elif self.requested:
            raise KeyboardInterrupt(f"second signal {number}")
        self.requested = True

    def _fall_silent(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Make SIGTERM (of a batch system, of `docker stop`) and SIGHUP (of a terminal that is gone) what Ctrl-C is.

    Without it they end the process at once, and whatever it had half-written stays. The first one raises
    `KeyboardInterrupt`; those that follow are ignored, so that they do not interrupt the tidying up. A signal that is
    ignored (`nohup`) stays ignored. Elsewhere than in the main thread nothing changes.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(f"signal {number}")

    caught = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    previous = {each: handler for each in caught if (handler := signal.getsignal(each)) not in (signal.SIG_IGN, None)}
    for each in previous:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
