"""A Ray head on this machine, started as docs/remote.md says, with a token, ports and files of its own."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ports import free_port

ROOT = Path(__file__).parents[2]
START_S = 90.0


def documented_start() -> list[str]:
    """The words of the command that docs/remote.md starts Ray with."""
    lines = (ROOT / "docs" / "remote.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if " ray start " in line]
    return shlex.split(line)


@dataclass
class RayHead:
    """A head; `start` and `kill` may follow each other on the same port."""

    folder: Path
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    auth_mode: str = "token"
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def variables(self) -> dict[str, str]:
        """What a process on the near side needs."""
        return {"RAY_AUTH_TOKEN_PATH": str(self.token_file), "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}

    def start(self) -> None:
        self.token_file.write_text(self.token, encoding="utf-8")
        variable, ray, *documented = documented_start()
        assert (variable, ray) == ("RAY_AUTH_MODE=token", "ray")
        command = [
            str(Path(sys.executable).with_name("ray")), *documented, "--num-cpus=8", "--port=0",
            f"--ray-client-server-port={self.port}",
            f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0",
            f"--object-store-memory={100 << 20}", f"--temp-dir={tempfile.mkdtemp(dir=self.folder)}",
        ]  # fmt: skip
        environment: Mapping[str, str] = {
            **os.environ,
            **self.variables,
            "RAY_AUTH_MODE": self.auth_mode,
            "VLA_RL_TEST_SIDE": "far",
            "RAY_worker_niceness": "0",  # else a busy machine leaves nothing for the simulators
        }
        with (self.folder / "head.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "head.log").read_text()
                assert time.monotonic() < deadline, (self.folder / "head.log").read_text()
                time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """Every process of this head: they name its folder, or descend from those that do."""
        assert self.process is not None
        try:
            return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def actors(self) -> list[psutil.Process]:
        """The processes that hold environments."""
        return [process for process in self.processes() if _title(process).startswith("ray::EnvHost")]

    def kill(self) -> None:
        """End everything at once, as a machine does that loses its power."""
        found = self.processes()
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(found, timeout=20)
        if self.process is not None:
            self.process.wait(20)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def ray_head(*, auth_mode: str = "token") -> Iterator[RayHead]:
    """A head that runs, and ends with all its processes."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: a socket's path has at most 107 bytes
    head = RayHead(folder, auth_mode=auth_mode)
    try:
        head.start()
        yield head
    finally:
        head.kill()
        shutil.rmtree(folder, ignore_errors=True)
