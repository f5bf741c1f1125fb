"""Process-wide setup around the start of a child: by its parent, and by the child right afterwards."""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import signal
import sys
import threading
from multiprocessing import active_children, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

from vla_rl.ipc.parent_death import FOR_THE_PARENT, end_with_parent, shielded

ORPHANED_EXIT_CODE = 113


def start_child(process: BaseProcess) -> None:
    """Start a spawned process that only this one can end (except by SIGKILL), even while it imports.

    A terminal signals its whole process group, and a batch system every process of a job.
    """
    with shielded():
        process.start()


@atexit.register
def _kill_children() -> None:
    """Kill the children: at exit `multiprocessing` would send SIGTERM, which they ignore, and wait forever."""
    for child in active_children():
        child.kill()


def enter_child(name: str, log_path: Path, *, threads: int) -> logging.Logger:
    """Set a spawned child up: log file, stack dumps, signals, death with the parent, thread limits.

    Args:
        name: name of the process and of its logger, e.g. "env_worker_0".
        log_path: the child's own log; stdout and stderr of the child go there too, so that nothing a simulator prints
            reaches the terminal.
        threads: thread limit for numerical libraries, which read it from the environment at import.

    Returns:
        The child's logger.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(max(1, threads))
    _die_with_parent()
    for number in FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    stream = log_path.open("a", buffering=1, encoding="utf-8")
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    faulthandler.enable(stream)
    faulthandler.register(signal.SIGUSR1, stream, all_threads=True)  # the supervisor asks a hung child for its stack
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_PARENT)
    logging.basicConfig(
        level=logging.INFO, stream=stream, force=True, format=f"%(asctime)s {name} %(levelname)s %(message)s"
    )
    log = logging.getLogger(name)
    log.info("process %d", os.getpid())
    return log


def leave_child() -> NoReturn:
    """End a child whose work is done and whose resources are closed, without the interpreter's own clean-up.

    Graphics and numerical libraries register exit handlers that take seconds, or hang if several contexts were open.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _die_with_parent() -> None:
    """Make the kernel kill this process when its parent dies, for any reason; without prctl, watch the parent."""
    end_with_parent(signal.SIGKILL)
    parent = parent_process()
    if parent is None:
        return
    if not parent.is_alive():  # it died before prctl took effect
        os._exit(ORPHANED_EXIT_CODE)

    def watch() -> None:
        parent.join()
        os._exit(ORPHANED_EXIT_CODE)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
