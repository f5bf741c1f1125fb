"""Row of one env worker in the cell's counters, under the names its code uses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from vla_rl.ipc.counters import CellCounters, EnvWorkerPhase


class WorkerCounters:
    """Counts, heartbeat and phase of one env worker; its only writer."""

    def __init__(self, counters: CellCounters, worker_index: int) -> None:
        self._counters = counters
        self._index = worker_index

    @property
    def stop_requested(self) -> bool:
        """Return whether the cell should end."""
        return self._counters.stop_requested

    def beat(self) -> None:
        """Record a heartbeat."""
        self._counters.beat("env_worker_heartbeat", self._index)

    def enter(self, phase: EnvWorkerPhase) -> None:
        """Record the worker's current phase."""
        self._counters.set("env_worker_phase", phase, self._index)
        self.beat()

    @contextmanager
    def timed(self, phase: EnvWorkerPhase, counter: str) -> Iterator[None]:
        """Enter a phase and add its duration in seconds to a counter."""
        self.enter(phase)
        began = time.monotonic()
        try:
            yield
        finally:
            self._counters.add(counter, time.monotonic() - began, self._index)

    def set_open_slots(self, count: int) -> None:
        """Record how many slots will ask for decisions again."""
        self._counters.set("env_worker_open_slots", count, self._index)

    def add_decision(self, env_steps: int) -> None:
        """Count one decision, executed for so many control steps."""
        self._counters.add("env_worker_decisions", 1, self._index)
        self._counters.add("env_worker_env_steps", env_steps, self._index)

    def add_episode(self) -> None:
        """Count one episode that ended."""
        self._counters.add("env_worker_episodes", 1, self._index)

    def collection_allowed(self) -> bool:
        """Return whether the governor allows more decisions, over all env workers of the cell."""
        return self._counters.total("env_worker_decisions") < self._counters.get("allowed_decisions")
