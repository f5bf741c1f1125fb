"""When a batch of waiting slots leaves: pure bookkeeping, no processes, no clocks of its own."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Batcher:
    """Collects waiting requests; a batch leaves when it is full, when nobody else can come, or when it waited enough.

    A request belongs to a worker; its reply must name the worker and its incarnation again.
    """

    max_batch: int  # decisions
    max_wait_s: float  # from the first waiting request
    open_slots: int = 0  # of the cell: when all that will ask again wait, nobody else can come
    _waiting: list[tuple[int, int, int]] = field(default_factory=list)  # (worker, incarnation, slot)
    _first_at: float = 0.0

    def add(self, worker: int, incarnation: int, slots: list[int], now: float) -> None:
        """A worker's slots wait for decisions. A restarted worker's requests replace its predecessor's."""
        self._waiting = [entry for entry in self._waiting if entry[0] != worker or entry[1] == incarnation]
        if not self._waiting:
            self._first_at = now
        self._waiting.extend((worker, incarnation, slot) for slot in slots)

    def seconds_left(self, now: float) -> float | None:
        """How long to wait for more before the batch leaves: None if nothing waits, 0 if it should leave now."""
        if not self._waiting:
            return None
        if len(self._waiting) >= min(self.max_batch, self.open_slots):
            return 0.0
        return max(0.0, self._first_at + self.max_wait_s - now)

    def take(self, now: float) -> list[tuple[int, int, int]]:
        """The next batch, oldest requests first, at most `max_batch` of them."""
        batch, self._waiting = self._waiting[: self.max_batch], self._waiting[self.max_batch :]
        self._first_at = now
        return batch
