"""Signals that ask to end: as a request between two steps, or as Ctrl-C where there are no steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from vla_rl.ipc.lifeline import FOR_THE_PARENT, stop_signals

_pending: list[int] = []  # signals that came before anybody could heed them; no lock, because a handler adds to it


def heed_signals() -> None:
    """Raise `KeyboardInterrupt` if a signal came within `interrupted_by_signals` and was swallowed by somebody."""
    if _pending:
        raise KeyboardInterrupt


class StopRequest:
    """Catches the signals that ask to end (`stop_signals`) while it is entered; Ctrl-C after one interrupts at once.

    The others come several times for one reason: a hangup from the kernel and from the shell, the rest from a batch
    system to every process and once more from a launcher. Their second says nothing. With a hangup the terminal is gone
    and writing to it fails: what would go there goes nowhere from then on. Under `nohup` there is no hangup.

    Signals can be caught in the main thread alone; elsewhere nothing is caught.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, object] = {}
        self._terminals: list[int] = []  # descriptors

    def __enter__(self) -> Self:
        self.requested = bool(_pending)
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
        elif self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt(f"second signal {number}")
        self.requested = True

    def _fall_silent(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def interrupted_by_signals(*, only_noted: bool = False) -> Iterator[None]:
    """Make SIGTERM (of a batch system, of `docker stop`), SIGHUP, SIGUSR1 and SIGUSR2 what Ctrl-C is.

    Without it they end the process at once, and whatever it had half-written stays. The first one raises
    `KeyboardInterrupt`; those that follow are ignored, so that they do not interrupt the tidying up; Ctrl-C always
    raises. A signal that is
    ignored (`nohup`) stays ignored. Elsewhere than in the main thread nothing changes.

    Libraries may swallow what is raised while they are imported: a `StopRequest` that is entered afterwards is
    requested already, and `heed_signals` raises once more.

    Args:
        only_noted: nothing is raised, here or by Ctrl-C; only a `StopRequest` heeds the signal. For the ranks of a run,
            which end together or not at all.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        _pending.append(number)
        if only_noted:
            return
        for each in previous.keys() - {signal.SIGINT}:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(f"signal {number}")

    caught = FOR_THE_PARENT if threading.current_thread() is threading.main_thread() else frozenset()
    previous = {each: handler for each in caught if (handler := signal.getsignal(each)) not in (signal.SIG_IGN, None)}
    for each in previous:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        _pending.clear()
        for each, handler in previous.items():
            signal.signal(each, handler)
