"""Ctrl-C, SIGTERM and a closed terminal as a request to end well."""

from __future__ import annotations

import os
import signal
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
