"""Signals that ask to end: as a request between two steps, or as Ctrl-C where there are no steps."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from vla_rl.ipc.parent_death import FOR_THE_PARENT, stop_signals

_AGAIN_SECONDS = 0.05  # until an interruption that a destructor swallowed is raised again
_pending: list[int] = []  # signals received before anything could handle them; no lock, because a handler adds to it


def heed_signals() -> None:
    """Raise `KeyboardInterrupt` if a signal came within `interrupted_by_signals` and its exception was swallowed."""
    if _pending:
        raise KeyboardInterrupt


class StopRequest:
    """Catcher of signals that ask to end (`stop_signals`) while it is entered; Ctrl-C after one interrupts at once.

    The other signals may arrive several times for one reason: a hangup from the kernel and from the shell, the rest
    from a batch system to every process and again from a launcher. Repetitions are ignored. After a hangup the terminal
    is gone and writing to it fails, so its output is dropped from then on. Under `nohup` there is no hangup.

    Signals can only be caught in the main thread; elsewhere nothing is caught.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, object] = {}
        self._terminals: list[int] = []  # file descriptors

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
    """Make SIGTERM (of a batch system, of `docker stop`), SIGHUP, SIGUSR1 and SIGUSR2 act like Ctrl-C.

    Without it they end the process at once and leave half-written files. The first one raises `KeyboardInterrupt`;
    later ones are ignored, so that they do not interrupt the clean-up; Ctrl-C always raises. A signal that is ignored
    (`nohup`) stays ignored. Outside the main thread nothing changes.

    Libraries may swallow exceptions raised while they are imported: a `StopRequest` entered afterwards is then already
    requested, and `heed_signals` raises again. Python itself swallows those raised in a destructor or in a callback
    from C: they are raised again a moment later.

    Args:
        only_noted: raise nothing, not even for Ctrl-C; only a `StopRequest` handles the signal. Meant for the ranks of
            a run, which end together or not at all.
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

    report = sys.unraisablehook

    def raise_again(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Timer(_AGAIN_SECONDS, interrupt_again).start()  # raised in here it would be lost again
        else:
            report(unraisable)

    def interrupt_again() -> None:
        if signal.getsignal(signal.SIGINT) is interrupt:  # neither left nor handed over to a `StopRequest`
            _thread.interrupt_main()

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = report
        _pending.clear()
        for each, handler in previous.items():
            signal.signal(each, handler)
