"""One thread for each env slot, where simulators run elsewhere and this process only waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from queue import SimpleQueue

SlotCall = Callable[[int], bool]  # `EnvRunner.start` or `EnvRunner.advance`


class SlotThreads:
    """Threads that each play one slot; at most one call of a slot is under way.

    They are daemons: a process whose simulator never answers can still end.
    """

    def __init__(self, slots: Sequence[int], *, limit_s: float) -> None:
        """Start the threads.

        Args:
            slots: the slots to play.
            limit_s: seconds after which a call counts as lost, whatever it waits for.
        """
        self.ended, self._ringer = Pipe(duplex=False)  # `ended` becomes readable when a call has ended
        self._limit_s = limit_s
        self._calls: dict[int, SimpleQueue[SlotCall | None]] = {slot: SimpleQueue() for slot in slots}
        self._outcomes: SimpleQueue[tuple[int, bool | BaseException]] = SimpleQueue()
        self._began: dict[int, float] = {}
        for slot in slots:
            threading.Thread(target=self._play, args=(slot,), name=f"slot-{slot}", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Return whether a call is under way."""
        return bool(self._began)

    def is_idle(self, slot: int) -> bool:
        """Return whether the slot has no call under way."""
        return slot not in self._began

    def begin(self, slot: int, call: SlotCall) -> None:
        """Make a call for an idle slot."""
        assert self.is_idle(slot)
        self._began[slot] = time.monotonic()
        self._calls[slot].put(call)

    def take(self) -> list[tuple[int, bool]]:
        """Return the calls that have ended, as slots and results; empty if none has.

        Raises:
            TimeoutError: a call has lasted for longer than the limit.
            BaseException: what a call has raised.
        """
        taken = []
        while self.ended.poll():
            self.ended.recv_bytes()
            slot, outcome = self._outcomes.get()
            del self._began[slot]
            if isinstance(outcome, BaseException):
                raise outcome
            taken.append((slot, outcome))
        now = time.monotonic()
        for slot, began in self._began.items():
            if now - began > self._limit_s:
                raise TimeoutError(f"slot {slot}: its simulator has not answered for {now - began:.0f} s")
        return taken

    def close(self) -> None:
        """Let every thread end after its call; waits for none."""
        for calls in self._calls.values():
            calls.put(None)

    def _play(self, slot: int) -> None:
        while (call := self._calls[slot].get()) is not None:
            try:
                outcome: bool | BaseException = call(slot)
            except BaseException as error:  # noqa: BLE001 - raised again by `take`, in the thread that waits
                outcome = error
            self._outcomes.put((slot, outcome))
            self._ringer.send_bytes(b".")
