"""Run by the launcher in tests: says who it is, then does what its arguments ask."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from vla_rl.learner.launch import launched_rank


def main() -> int:
    folder, behaviour = Path(sys.argv[1]), sys.argv[2]
    identity = launched_rank()
    assert identity is not None
    rank, num_ranks = identity
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: received.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # as the program does once it listens
    threads = os.environ["OMP_NUM_THREADS"]
    here = os.environ["LOCAL_WORLD_SIZE"]
    content = f"{rank} of {num_ranks}, {here} here, {threads} threads, accelerator {os.environ.get('DS_ACCELERATOR')}"
    (folder / f"rank_{rank}").write_text(content)
    if behaviour == "fail" and rank == 1:
        return 3
    end = time.monotonic() + 40.0
    while behaviour == "wait" and not received and time.monotonic() < end:
        time.sleep(0.05)
    if received:
        (folder / f"signal_{rank}").write_text(str(received))
    return 0


if __name__ == "__main__":
    sys.exit(main())
