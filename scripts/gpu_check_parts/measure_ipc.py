"""Memory that another process maps: is it seen there, and does it come back however that process ends?"""

from __future__ import annotations

import gc
import os
import signal
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from gpu_check_parts.measuring import device, on_gpu, used_on_card, wait
from gpu_check_parts.record import Record, Setting
from vla_rl.ipc.shared_weights import SharedWeights, SharedWeightsHandle, share_tensors
from vla_rl.policies.devices import use_device

WAYS = ("returns", "os._exit", "SIGKILL")  # of a child to end; os._exit is how the program's own children end
MARK = 7.0
CHILD_S = 45.0
SLACK_BYTES = 64 << 20  # the driver's own; a lost block is 256 MiB


def measure(record: Record, setting: Setting) -> None:
    """Share a block with a child, once for each way to end."""
    num_bytes = 256 << 20 if setting.size == "7b" else 1 << 20
    use_device(device())
    record.put("device", str(device()))
    ways: dict[str, Any] = {}
    for way in WAYS:
        ways[way] = found = share_once(way, num_bytes)
        record.put("ways", ways)
        record.check(f"a child sees shared memory ({way})", found["seen"] == MARK, f"it wrote {found['seen']}")
        for where in ("allocated", "on_card"):
            lost = found[f"{where}_bytes_lost"]
            holds = lost <= (SLACK_BYTES if where == "on_card" else 0)
            record.check(f"memory comes back after a child that ends by {way} ({where})", holds, f"{lost} bytes lost")


def share_once(way: str, num_bytes: int) -> dict[str, Any]:
    """Share a block, have a child write into it and end, close, and count what is still held."""
    if on_gpu():
        torch.zeros(1, device=device())  # the context is counted before
    wait()
    allocated, on_card = held()
    began = time.monotonic()
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    shared = share_tensors({"block": torch.zeros(num_bytes // 4, device=device())})
    child = context.Process(target=use, args=(shared.handle, way, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        told = ours.recv() if ours.poll(CHILD_S) else "nothing"
        if way == "SIGKILL" and child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
        child.join(CHILD_S)
    finally:
        if child.is_alive():
            child.kill()
            child.join(CHILD_S)
    wait()
    seen = float(shared.tensors()["block"][0])
    code = child.exitcode
    shared.close()
    del shared, child, told
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()
    after = held()
    return {
        "seen": seen,
        "exit_code": code,
        "seconds": round(time.monotonic() - began, 2),
        "allocated_bytes_lost": after[0] - allocated,
        "on_card_bytes_lost": after[1] - on_card,
    }


def held() -> tuple[int, int]:
    """Bytes that torch has handed out in this process, and bytes in use on the card."""
    return (torch.cuda.memory_allocated(), used_on_card()) if on_gpu() else (0, 0)


def use(handle: SharedWeightsHandle, way: str, tell: Connection) -> None:
    """The child: write a number, say so, end."""
    use_device(device())
    shared = SharedWeights.attach(handle)
    shared.tensors()["block"][0] = MARK
    wait()
    tell.send("written")
    if way == "os._exit":
        os._exit(0)
    if way == "SIGKILL":
        time.sleep(CHILD_S)
