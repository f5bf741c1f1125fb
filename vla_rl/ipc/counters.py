"""Counters of one cell, in shared memory: heartbeats, work done, work allowed.

Every element has one writer, so nothing is locked: an aligned 8-byte number is written and read atomically. Counts
never decrease: a restarted worker continues in its predecessor's row.

    counter                 unit        written by            read by
    env_worker_*            see below   the env worker        supervisor, governor, metrics
    inference_*             see below   who decides: the      supervisor, metrics
                                        inference worker, or
                                        each env worker
    allowed_decisions       decisions   the governor          env workers: collect while decisions started stay below
    stop                    0 or 1      the supervisor        everyone
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import Self

import numpy as np

from vla_rl.ipc.shared_arrays import Field, InSharedBlock, SharedArrays, SharedArraysHandle

_UNLIMITED = np.iinfo(np.int64).max


class EnvWorkerPhase(IntEnum):
    """Current activity of an env worker; a hang report names it."""

    STARTING = 0
    RESETTING = 1
    WAITING_FOR_ACTION = 2
    STEPPING = 3
    HELD_BACK = 4  # held back by the governor
    STOPPED = 5


_PER_ENV_WORKER = {
    "env_worker_heartbeat": np.float64,  # monotonic seconds (one clock for all processes of a machine)
    "env_worker_phase": np.int64,  # EnvWorkerPhase
    "env_worker_env_steps": np.int64,  # control steps executed
    "env_worker_decisions": np.int64,  # decisions executed
    "env_worker_episodes": np.int64,  # episodes ended
    "env_worker_wait_seconds": np.float64,  # waiting for actions
    "env_worker_held_back_seconds": np.float64,  # waiting for the governor
    "env_worker_open_slots": np.int64,  # slots that will ask for decisions again: all but those without jobs
}
_PER_SERVER = {
    "inference_heartbeat": np.float64,  # monotonic seconds; of the inference worker
    "inference_batches": np.int64,
    "inference_decisions": np.int64,  # decisions served
    "inference_policy_version": np.int64,  # version in use
    "inference_busy_seconds": np.float64,  # computing a batch
    "inference_adopt_seconds": np.float64,  # duration of the last update to the newest weights
    "inference_own_frozen": np.int64,  # 1: it could not map the learner's frozen weights and loaded its own copy
    "inference_peak_allocated": np.int64,  # bytes of its GPU: by tensors of its own
    "inference_peak_reserved": np.int64,  # bytes of its GPU: by torch's allocator
}
_PER_CELL = {
    "allowed_decisions": np.int64,  # largest number of decisions env workers may have started, summed over the cell
    "stop": np.int64,
}


class CellCounters(InSharedBlock):
    """Counters of one cell. Created by the supervisor, attached by every process of the cell."""

    @classmethod
    def create(cls, *, num_env_workers: int, num_servers: int = 1) -> Self:
        """Create counters at zero, heartbeats at now, versions at -1, no limit on decisions.

        Args:
            num_env_workers: of the cell.
            num_servers: processes that decide: 1, the inference worker, or every env worker.
        """
        fields = [Field(name, (num_env_workers,), dtype) for name, dtype in _PER_ENV_WORKER.items()]
        fields += [Field(name, (num_servers,), dtype) for name, dtype in _PER_SERVER.items()]
        fields += [Field(name, (1,), dtype) for name, dtype in _PER_CELL.items()]
        arrays = SharedArrays.create("counters", fields, poison=False)
        counters = cls(arrays)
        counters.set("allowed_decisions", int(_UNLIMITED))
        for index in range(num_servers):
            counters.set("inference_policy_version", -1, index)
            counters.beat("inference_heartbeat", index)
        for index in range(num_env_workers):
            counters.beat("env_worker_heartbeat", index)
        return counters

    @classmethod
    def attach(cls, handle: SharedArraysHandle) -> Self:
        """Map the counters of another process."""
        return cls(SharedArrays.attach(handle))

    @property
    def handle(self) -> SharedArraysHandle:
        """Return a handle for a spawned process."""
        return self._block.handle

    def get(self, name: str, index: int = 0) -> int | float:
        """Return the value of one element."""
        value: int | float = self._block[name][index].item()
        return value

    def total(self, name: str) -> int | float:
        """Return the sum over the env workers, or over the processes that decide."""
        value: int | float = self._block[name].sum().item()
        return value

    def highest(self, name: str) -> int | float:
        """Return the largest value over the env workers, or over the processes that decide."""
        value: int | float = self._block[name].max().item()
        return value

    @property
    def num_servers(self) -> int:
        """Return the number of processes that decide."""
        return len(self._block["inference_batches"])

    def set(self, name: str, value: float, index: int = 0) -> None:
        """Write one element; only its one writer may."""
        self._block[name][index] = value

    def add(self, name: str, amount: float, index: int = 0) -> None:
        """Add to one element; only its one writer may."""
        self._block[name][index] += amount

    def beat(self, name: str, index: int = 0) -> None:
        """Write the current time into a heartbeat."""
        self._block[name][index] = time.monotonic()

    def silent_seconds(self, name: str, index: int = 0) -> float:
        """Return the seconds since the last beat of a heartbeat."""
        return time.monotonic() - float(self._block[name][index])

    def request_stop(self) -> None:
        """Ask every process of the cell to end."""
        self._block["stop"][0] = 1

    @property
    def stop_requested(self) -> bool:
        """Return whether the cell should end."""
        return bool(self._block["stop"][0])
