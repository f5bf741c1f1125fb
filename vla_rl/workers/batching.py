"""Batching of waiting slots: pure bookkeeping, without processes or a clock."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Batcher:
    """Collector of waiting requests; a batch leaves when it is full, when no more can come, or after a maximum wait.

    A request belongs to a worker; the reply must name the worker and its incarnation.
    """

    max_batch: int  # decisions
    max_wait_s: float  # since the first waiting request
    open_slots: int = 0  # in the cell: if all of them are waiting, no more can come
    _waiting: list[tuple[int, int, int]] = field(default_factory=list)  # (worker, incarnation, slot)
    _first_at: float = 0.0

    def add(self, worker: int, incarnation: int, slots: list[int], now: float) -> None:
        """Add a worker's slots that wait for decisions. A restarted worker's requests replace its predecessor's."""
        self._waiting = [entry for entry in self._waiting if entry[0] != worker or entry[1] == incarnation]
        if not self._waiting:
            self._first_at = now
        self._waiting.extend((worker, incarnation, slot) for slot in slots)

    def seconds_left(self, now: float) -> float | None:
        """Return how long to wait for more before the batch leaves: None if nothing waits, 0 if it should leave now."""
        if not self._waiting:
            return None
        if len(self._waiting) >= min(self.max_batch, self.open_slots):
            return 0.0
        return max(0.0, self._first_at + self.max_wait_s - now)

    def take(self, now: float) -> list[tuple[int, int, int]]:
        """Return the next batch, oldest requests first, at most `max_batch` of them."""
        batch, self._waiting = self._waiting[: self.max_batch], self._waiting[self.max_batch :]
        self._first_at = now
        return batch
