"""Start of a run's ranks on this machine through Accelerate's launcher, and detection of a launched rank.

For several machines the user runs `accelerate launch` or torchrun on each of them; the ranks detect it from their
environment. This module imports neither torch nor accelerate, and psutil only to start ranks: every help text loads it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from types import FrameType
from typing import TYPE_CHECKING, Literal

from vla_rl.container import usable_cores
from vla_rl.ipc.parent_death import end_with_parent, stop_signals

if TYPE_CHECKING:
    import psutil

INTERRUPTED = 130  # exit code after a signal, as in a shell


def launched_rank() -> tuple[int, int] | None:
    """Return (rank, number of ranks) if torchrun or `accelerate launch` started this process as one of several."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def launch_ranks(
    argv: list[str],
    *,
    num_ranks: int,
    strategy: Literal["ddp", "deepspeed"],
    device: Literal["cpu", "cuda"],
    module: str = "vla_rl",
) -> int:
    """Run `python -m vla_rl <argv>` as `num_ranks` processes of one group, and wait for them.

    Signals that ask to end (`stop_signals`) are forwarded only to the ranks: the launcher would kill them 30 seconds
    later, and a rank may need longer to save its checkpoint. The first becomes SIGUSR1, which stays pending in a rank
    that is still starting; after it only Ctrl-C has an effect, which interrupts at once. The user's configuration files
    are not read, so the same command does the same on every machine. Call it from the main thread.

    Args:
        argv: arguments of the program, without its name.
        num_ranks: processes; on "cuda" one per GPU.
        strategy: strategy of the ranks' `Engine`; determines the environment they need.
        device: "cpu" hides the GPUs from the ranks.
        module: module to run; tests pass their own.

    Returns:
        The exit code: 0 if every rank returned 0, but 130 if they did so after a forwarded signal. A rank itself must
        return 0 then: the launcher treats anything else as a failure and kills the other ranks.
    """
    with resources.as_file(resources.files("vla_rl.learner") / "accelerate.yaml") as config:
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)),
            # The multi-GPU launcher is plain torchrun underneath and works for CPUs and DeepSpeed too.
            *("--multi_gpu", "--num_processes", str(num_ranks), "--num_machines", "1", "--machine_rank", "0"),
            *("--main_process_ip", "127.0.0.1", "--main_process_port", "0", "--mixed_precision", "no"),
            *("--dynamo_backend", "no", "--num_cpu_threads_per_process", _threads_per_rank(num_ranks)),
            *("--module", module, *argv),
        ]
        # Its own session: the terminal sends Ctrl-C to a whole group, and the launcher must not receive it.
        process = subprocess.Popen(
            command,
            env=_environment(strategy, device, num_ranks),
            start_new_session=True,
            preexec_fn=_prepare_launcher,
        )
        with _signals_handed_on(process) as handed_on:
            code = process.wait()
    return INTERRUPTED if handed_on.number and (code == 0 or handed_on.ended_launcher) else code


def _prepare_launcher() -> None:
    """Prepare the new process: it ends with its parent; it and its ranks block early signals until they handle them."""
    end_with_parent(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})


@dataclass(slots=True)
class _HandedOn:
    number: int = 0  # signals received
    ended_launcher: bool = False  # those received before it had ranks


@contextlib.contextmanager
def _signals_handed_on(launcher: subprocess.Popen[bytes]) -> Iterator[_HandedOn]:
    """Forward signals to the ranks and yield a record of them."""
    import psutil

    handed_on = _HandedOn()

    def hand_on(number: int, _frame: FrameType | None) -> None:
        handed_on.number += 1
        is_first = handed_on.number == 1
        if not is_first and number != signal.SIGINT:
            return
        ranks = _ranks(launcher.pid)
        for process in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
                process.send_signal(signal.SIGUSR1 if is_first else number)
        if not ranks:
            handed_on.ended_launcher = True
            launcher.terminate()

    previous = {number: signal.signal(number, hand_on) for number in stop_signals()}
    try:
        yield handed_on
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ranks(launcher: int) -> list[psutil.Process]:
    """Return the launcher's children; none before they exist."""
    import psutil

    try:
        return psutil.Process(launcher).children()
    except psutil.NoSuchProcess:
        return []


def _threads_per_rank(num_ranks: int) -> str:
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // num_ranks))


def _environment(strategy: str, device: str, num_ranks: int) -> dict[str, str]:
    environment = os.environ | {"OMP_NUM_THREADS": _threads_per_rank(num_ranks)}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if strategy == "deepspeed" and device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
    return environment
