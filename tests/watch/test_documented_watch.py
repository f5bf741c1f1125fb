"""The commands of docs/watch.md are run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from watched_runs import make_run

DOCUMENT = Path(__file__).parents[2] / "docs" / "watch.md"
LINES = [
    line.split(" #")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
RUNS = [line for line in LINES if line.startswith("vla-rl runs")]
WATCH = [line for line in LINES if line.startswith("vla-rl watch")]


@pytest.fixture(autouse=True)
def _a_folder_with_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("toy", "toy-ppo"):
        make_run(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(DOCUMENT.parents[1]))


def program(line: str) -> list[str]:
    return [sys.executable, "-m", "vla_rl", *shlex.split(line)[1:]]


def test_there_are_commands_of_both_verbs() -> None:
    assert len(RUNS) >= 3
    assert len(WATCH) >= 3


@pytest.mark.parametrize("line", RUNS)
def test_a_documented_list_holds_the_runs(line: str) -> None:
    done = subprocess.run(program(line), capture_output=True, text=True, timeout=60, check=True)
    if "--json" in line:
        assert [Path(row["path"]).name for row in json.loads(done.stdout)] == ["toy", "toy-ppo"]
    else:
        assert "toy" in done.stdout


@pytest.mark.parametrize("line", WATCH)
def test_a_documented_page_is_served_until_ctrl_c(line: str) -> None:
    """On a port that is free, since others may use the documented one."""
    command = [*program(line), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            address = served.stdout.readline().split()[-1]
            states = json.load(urllib.request.urlopen(f"{address}api/runs", timeout=20))
            assert [state["name"] for state in states] == [
                word[5:] for word in line.split() if word.startswith("runs/")
            ]
            served.send_signal(signal.SIGINT)
            _, told = served.communicate(timeout=30)
            assert (served.returncode, told) == (130, "interrupted\n")
        finally:
            served.kill()
