"""Runs of several launchers on one machine, each as if it were a machine of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psutil
from ports import free_port

ROOT = Path(__file__).parents[2]
MARK = "TEST_RUN"  # in the environment of a run's processes
DEADLINE_S = 120.0
Launcher = Literal["torchrun", "accelerate", "none"]


def command(launcher: Launcher, node: int, nodes: int, port: int) -> list[str]:
    """The part of the command before the program's own arguments; without a launcher a rank is started directly."""
    if launcher == "torchrun":
        place = ["--nnodes", str(nodes), "--nproc-per-node", "1", "--node-rank", str(node)]
        address = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        return [sys.executable, "-m", "torch.distributed.run", *place, *address, "-m", "vla_rl"]
    if launcher == "accelerate":
        place = ["--num_machines", str(nodes), "--num_processes", str(nodes), "--machine_rank", str(node)]
        address = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        rest = ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no", "--module", "vla_rl"]
        return [sys.executable, "-m", "accelerate.commands.launch", *place, *address, *rest]
    return [sys.executable, "-m", "vla_rl"]


class Nodes:
    """The launchers of one start, and what they print."""

    def __init__(self, folder: Path, launcher: Launcher, commands: Sequence[Sequence[str]]) -> None:
        self._mark, port = str(folder), free_port()
        self.outputs = [folder / f"node_{node}_output.txt" for node in range(len(commands))]
        self.errors = [folder / f"node_{node}_errors.txt" for node in range(len(commands))]
        self.launcher = launcher
        self.processes = []
        for node, arguments in enumerate(commands):
            environment = os.environ | {MARK: self._mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
            if launcher == "none":
                environment |= {"RANK": str(node), "LOCAL_RANK": "0", "WORLD_SIZE": str(len(commands))}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            with self.outputs[node].open("wb") as output, self.errors[node].open("wb") as errors:
                self.processes.append(
                    subprocess.Popen(
                        [*command(launcher, node, len(commands), port), *arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=errors,
                        env=environment,
                        start_new_session=True,
                    )
                )

    def rank(self, node: int) -> psutil.Process:
        """The rank of a node."""
        process = psutil.Process(self.processes[node].pid)
        if self.launcher == "none":
            return process
        wait_until(process.children, "the start of a rank")
        return process.children()[0]

    def codes(self) -> list[int]:
        """Exit codes of all, once they have ended."""
        return [process.wait(DEADLINE_S) for process in self.processes]

    def printed(self, node: int) -> str:
        """Standard output alone: torch and its launcher write remarks of their own to standard error."""
        return self.outputs[node].read_text(errors="replace")

    def said(self, node: int) -> str:
        """Standard output and standard error."""
        return self.printed(node) + self.errors[node].read_text(errors="replace")

    def living(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def close(self) -> None:
        for process in self.living():
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        for own in self.processes:
            own.wait(10)


@contextmanager
def launched(folder: Path, launcher: Launcher, commands: Sequence[Sequence[str]]) -> Iterator[Nodes]:
    """Start one launcher for each command; whatever still runs at the end is killed."""
    nodes = Nodes(folder, launcher, commands)
    try:
        yield nodes
    finally:
        nodes.close()


def wait_until(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.05)
