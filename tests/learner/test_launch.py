"""Starting ranks through Accelerate's launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vla_rl.learner.launch import launch_ranks, launched_rank

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    home = tmp_path / "home"
    (home / "accelerate").mkdir(parents=True)
    (home / "accelerate" / "default_config.yaml").write_text("this is: not a configuration of accelerate")
    monkeypatch.setenv("HF_HOME", str(home))


def launch(folder: Path, behaviour: str) -> int:
    arguments = [str(folder), behaviour]
    return launch_ranks(arguments, num_ranks=2, strategy="deepspeed", device="cpu", module="launched_program")


def test_every_rank_runs_and_knows_itself(tmp_path: Path) -> None:
    assert launch(tmp_path, "return") == 0
    for rank in (0, 1):
        assert (tmp_path / f"rank_{rank}").read_text() == f"{rank} of 2, 2 here, 1 threads, accelerator cpu"


def test_a_rank_that_fails_fails_the_launch(tmp_path: Path) -> None:
    assert launch(tmp_path, "fail") != 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2])
def test_a_stop_reaches_the_ranks_and_they_end_in_their_own_way(tmp_path: Path, number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.05):
            if all((tmp_path / f"rank_{rank}").exists() for rank in (0, 1)):  # both wait for the signal now
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = launch(tmp_path, "wait")
    ended.set()
    thread.join()
    assert code == 130  # the ranks' own codes are 0
    for rank in (0, 1):
        assert (tmp_path / f"signal_{rank}").read_text() == f"[{signal.SIGUSR1.value}]"
    assert signal.getsignal(number) is handler


def test_a_process_that_nobody_launched_has_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched_rank() is None


def test_launching_imports_neither_torch_nor_accelerate() -> None:
    code = "import sys, vla_rl.learner.launch; print(sorted({'torch', 'accelerate', 'deepspeed'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
