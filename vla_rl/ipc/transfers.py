"""Copies of many tensors between a device and shared memory of the host: started together, waited for together.

    transfers.start(pairs)     # (target, source) each; copies may still be in progress when this returns
    transfers.wait()           # now all are complete; notify other processes only after this

Copies from and to ordinary memory are complete when they return (`PlainTransfers`). A GPU copies two to five times as
fast from and to memory that the system may not move ("pinned"), but then asynchronously (`PinnedTransfers`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Pair = tuple[Tensor, Tensor]  # target, source


class Transfers(Protocol):
    """Method of copying tensors."""

    def start(self, pairs: Iterable[Pair]) -> None:
        """Start copying each source to its target, after everything already queued on the device."""
        ...

    def wait(self) -> None:
        """Return when all started copies are complete, for this process and for others."""
        ...

    def close(self) -> None:
        """Finish, and release resources. Idempotent."""
        ...


class PlainTransfers:
    """Copies that are complete when `start` returns."""

    def start(self, pairs: Iterable[Pair]) -> None:
        """Copy."""
        for target, source in pairs:
            target.copy_(source)

    def wait(self) -> None:
        """Do nothing: no copy is in progress."""

    def close(self) -> None:
        """Do nothing: there are no resources."""


class PinnedTransfers:
    """Copies between a GPU and a range of host memory that is pinned while this object is open.

    They run on a separate stream, which first waits for the current one: for the optimizer when weights are published,
    for the preceding pass when they are adopted.
    """

    def __init__(self, device: torch.device, address: int, num_bytes: int) -> None:
        """Pin the memory.

        Args:
            device: the GPU.
            address: of the first byte, at the start of a page.
            num_bytes: of the range, whole pages.

        Raises:
            RuntimeError: the system refuses.
        """
        self._device, self._address = device, address
        self._stream, self._done = torch.cuda.Stream(device), torch.cuda.Event()
        with torch.cuda.device(device):
            code = torch.cuda.cudart().cudaHostRegister(address, num_bytes, 0)
        try:
            torch.cuda.check_error(code)
        except RuntimeError:
            # CUDA keeps the last error, and torch would attribute it to the next kernel, so report it here.
            with contextlib.suppress(RuntimeError):
                torch.ones(1, device=device)
            raise
        self._is_open = True

    def start(self, pairs: Iterable[Pair]) -> None:
        """Queue the copies on the stream."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        self._done.record(self._stream)

    def wait(self) -> None:
        """Block until the stream's last copy is complete."""
        self._done.synchronize()

    def close(self) -> None:
        """Wait for copies left by an exception, and unpin the memory. Never raises, so as not to hide the cause.

        A process that ends without it also releases the memory.
        """
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._stream.synchronize()
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._address))
        except RuntimeError as error:
            log.warning("memory of the weight mailbox stays pinned until this process ends: %s", _first_line(error))


def transfers_for(device: torch.device, address: int, num_bytes: int) -> Transfers:
    """Return transfers between a GPU and host memory: pinned, or plain ones if that fails, which is logged.

    Args:
        device: the GPU.
        address: of the host memory's first byte, at the start of a page.
        num_bytes: of the range, whole pages.
    """
    try:
        return PinnedTransfers(device, address, num_bytes)
    except RuntimeError as error:
        log.warning(
            "publishing weights takes longer than it needs: their shared memory cannot be pinned for %s: %s",
            device,
            _first_line(error),
        )
        return PlainTransfers()


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
