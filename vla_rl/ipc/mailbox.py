"""Weight mailbox: the newest complete snapshot of the trainable tensors, in shared memory.

    learner                                      inference worker, between two batches
    mailbox.publish(version, trainable)          if mailbox.latest_version() > version_in_use:
                                                     version_in_use = mailbox.read(into=trainable)

Two buffers: the writer fills the one that is not the latest, then names it the latest. Neither side waits: a reader
that is still copying when the writer returns to its buffer (two publishes later) sees that the buffer's sequence number
changed, discards its copy and takes the newer snapshot. A sequence number is odd while its buffer is written. One
writer; any number of readers.

Both buffers are pinned in a process that copies to or from a GPU (`transfers`). Such copies are asynchronous, so each
side waits for them in one place: the writer before it marks the buffer as complete, the reader before it checks whether
the buffer was written meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from mmap import PAGESIZE
from typing import Self

import numpy as np
import torch

from vla_rl.ipc.fence import Fence
from vla_rl.ipc.shared_arrays import Field, InSharedBlock, SharedArrays, SharedArraysHandle
from vla_rl.ipc.transfers import PlainTransfers, Transfers, transfers_for

NOTHING_PUBLISHED = -1
MAX_READ_ATTEMPTS = 100
_NUM_BUFFERS = 2

TensorLayout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True, slots=True)
class MailboxHandle:
    """Handle with which another process attaches."""

    layout: dict[str, tuple[tuple[int, ...], torch.dtype]]
    block: SharedArraysHandle


class WeightMailbox(InSharedBlock):
    """Versioned snapshots of a fixed set of tensors."""

    def __init__(self, layout: TensorLayout, block: SharedArrays) -> None:
        self._layout = {name: (tuple(shape), dtype) for name, (shape, dtype) in layout.items()}
        super().__init__(block)
        self._latest = block["latest"]
        self._sequence = block["sequence"]
        self._version = block["version"]
        self._buffers = [self._map_buffer(index) for index in range(_NUM_BUFFERS)]
        self._fence = Fence()
        self._transfers: Transfers | None = None  # pinned at the first copy, because it takes time

    @classmethod
    def create(cls, layout: TensorLayout) -> Self:
        """Allocate a mailbox for tensors of these shapes and dtypes; the caller owns it.

        Raises:
            ValueError: not enough room.
        """
        fields = [
            Field("latest", (1,), np.int64),
            Field("sequence", (_NUM_BUFFERS,), np.int64),
            Field("version", (_NUM_BUFFERS,), np.int64),
        ]
        for index in range(_NUM_BUFFERS):
            fields += [
                Field(_buffer_name(index, name), (prod(shape) * dtype.itemsize,), np.uint8)
                for name, (shape, dtype) in layout.items()
            ]
        block = SharedArrays.create("mailbox", fields)
        block["latest"][:] = 0
        block["sequence"][:] = 0
        block["version"][:] = NOTHING_PUBLISHED
        return cls(layout, block)

    @classmethod
    def attach(cls, handle: MailboxHandle) -> Self:
        """Map the mailbox of another process."""
        return cls(handle.layout, SharedArrays.attach(handle.block))

    @property
    def handle(self) -> MailboxHandle:
        """Return a handle for a spawned process."""
        return MailboxHandle(self._layout, self._block.handle)

    def publish(self, version: int, named: Mapping[str, torch.Tensor]) -> None:
        """Make a snapshot the newest. Never waits for a reader.

        Args:
            version: at least 0 and above the last one.
            named: the tensors of the layout, on any device.

        Raises:
            ValueError: names, shapes or dtypes differ from the layout, or the version does not grow.
        """
        self._check_layout(named, "published")
        latest = int(self._latest[0])
        if version <= self._version[latest]:
            raise ValueError(f"published version must be above {self._version[latest]}, got {version}")
        target = (latest + 1) % _NUM_BUFFERS
        self._sequence[target] |= 1  # it may already be odd, from an attempt that failed midway
        self._fence()
        transfers = self._transfers_of(named)
        transfers.start((view, named[name].detach()) for name, view in self._buffers[target].items())
        transfers.wait()
        self._version[target] = version
        self._fence()
        self._sequence[target] += 1
        self._fence()
        self._latest[0] = target

    def latest_version(self) -> int:
        """Return the version of the newest snapshot, -1 before the first; two reads of shared memory."""
        return int(self._version[self._latest[0]])

    def read(self, into: Mapping[str, torch.Tensor]) -> int:
        """Copy the newest snapshot.

        Args:
            into: tensors of the layout, on any device; half-copied if this raises.

        Returns:
            The version that was copied.

        Raises:
            ValueError: names, shapes or dtypes differ from the layout, or nothing was published yet.
            RuntimeError: the writer overtook every attempt with two publishes.
        """
        self._check_layout(into, "read into")
        transfers = self._transfers_of(into)
        for _ in range(MAX_READ_ATTEMPTS):
            source = int(self._latest[0])
            before = int(self._sequence[source])
            if before % 2:
                continue
            self._fence()
            version = int(self._version[source])
            if version == NOTHING_PUBLISHED:
                raise ValueError("read from a weight mailbox before anything was published: ask latest_version() first")
            with torch.no_grad():
                transfers.start((into[name], view) for name, view in self._buffers[source].items())
                transfers.wait()
            self._fence()
            if int(self._sequence[source]) == before:
                return version
        raise RuntimeError(
            f"weight mailbox: {MAX_READ_ATTEMPTS} reads in a row were overtaken by two publishes each (latest version "
            f"{self.latest_version()}); publish less often (learner.publish_every)"
        )

    def close(self) -> None:
        """Release the memory. Idempotent."""
        if self._transfers is not None:
            self._transfers.close()
            self._transfers = None
        super().close()

    def _transfers_of(self, named: Mapping[str, torch.Tensor]) -> Transfers:
        if self._transfers is None:
            devices = (tensor.device for tensor in named.values())
            gpu = next((device for device in devices if device.type == "cuda"), None)
            self._transfers = PlainTransfers() if gpu is None else transfers_for(gpu, *self._pages())
        return self._transfers

    def _pages(self) -> tuple[int, int]:
        """Return address and length of the whole pages that hold both buffers."""
        views = [view for buffer in self._buffers for view in buffer.values()]
        first = min(view.data_ptr() for view in views) // PAGESIZE
        behind = -(-max(view.data_ptr() + view.nbytes for view in views) // PAGESIZE)
        return first * PAGESIZE, (behind - first) * PAGESIZE

    def _map_buffer(self, index: int) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(self._block[_buffer_name(index, name)]).view(dtype).view(shape)
            for name, (shape, dtype) in self._layout.items()
        }

    def _check_layout(self, named: Mapping[str, torch.Tensor], action: str) -> None:
        if named.keys() != self._layout.keys():
            missing, unknown = sorted(self._layout.keys() - named.keys()), sorted(named.keys() - self._layout.keys())
            raise ValueError(f"tensors {action} differ from the mailbox's: missing {missing}, unknown {unknown}")
        for name, (shape, dtype) in self._layout.items():
            found = (tuple(named[name].shape), named[name].dtype)
            if found != (shape, dtype):
                raise ValueError(f"tensor {name!r} {action} must be {shape} {dtype}, got {found[0]} {found[1]}")


def _buffer_name(index: int, name: str) -> str:
    return f"{index}:{name}"
