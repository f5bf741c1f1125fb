"""Ctrl-C and SIGTERM as a request to end well."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self


class StopRequest:
    """Catches the first SIGINT or SIGTERM while it is entered; the second one interrupts at once.

    Signals can be caught in the main thread alone; elsewhere nothing is caught.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._catch)
            except ValueError:  # not the main thread
                return self
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt(f"second signal {number}")
        self.requested = True
