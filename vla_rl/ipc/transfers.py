"""Copies of many tensors between a device and shared memory of the host: started together, waited for together.

    transfers.start(pairs)     # (target, source) each; a copy may still be under way when this returns
    transfers.wait()           # now all are complete: what is told to other processes is told after this

Copies from and to ordinary memory are complete when they return (`PlainTransfers`). A GPU copies two to five times as
fast from and to memory that the system may not move ("pinned"), but then goes on by itself (`PinnedTransfers`).
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
    """How tensors are copied."""

    def start(self, pairs: Iterable[Pair]) -> None:
        """Begin to copy each source into its target, after all that the caller gave the device to do before."""
        ...

    def wait(self) -> None:
        """Return when all copies that were started are complete, for this process and for others."""
        ...

    def close(self) -> None:
        """Finish, and give back what was taken. Idempotent."""
        ...


class PlainTransfers:
    """Copies that are complete when `start` returns."""

    def start(self, pairs: Iterable[Pair]) -> None:
        """Copy."""
        for target, source in pairs:
            target.copy_(source)

    def wait(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing was taken."""


class PinnedTransfers:
    """Copies between a GPU and a range of host memory that is pinned as long as this object is open.

    They run on a stream of their own, which first waits for the current one: for the optimizer when weights are
    published, for the pass before when they are adopted.
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
            # CUDA keeps the last error, and torch would report it as that of the next kernel: have it reported here.
            with contextlib.suppress(RuntimeError):
                torch.ones(1, device=device)
            raise
        self._is_open = True

    def start(self, pairs: Iterable[Pair]) -> None:
        """Give the copies to the stream."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        self._done.record(self._stream)

    def wait(self) -> None:
        """Let the processor wait for the stream's last copy."""
        self._done.synchronize()

    def close(self) -> None:
        """Let copies that an exception left behind end, and unpin the memory. Does not raise, so as not to hide why.

        A process that ends without it gives the memory back as well.
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
    """Transfers between a GPU and host memory: pinned, or plain ones where that fails, which is logged.

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
