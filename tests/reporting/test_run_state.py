"""Whether a run goes on and how it ended, told from its folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vla_rl.errors import RunFailureError
from vla_rl.reporting.run_state import QUIET_S, Process, RunLife, in_one_line, read_state

LIVES = """
import sys
from pathlib import Path
from vla_rl.reporting.run_state import RunLife
with RunLife(Path(sys.argv[1])) as life:
    life.begin()
    print("begun", flush=True)
    sys.stdin.read()
"""


def state_of(folder: Path, *, is_spent: bool = False) -> str:
    return read_state(folder, is_spent=is_spent).state


def record(folder: Path, process: Process, state: str = "running") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"state": state, "reason": "", "process": asdict(process)}))


def make_old(folder: Path) -> None:
    for path in folder.iterdir():
        then = path.stat().st_mtime - QUIET_S - 60
        os.utime(path, (then, then))


def test_a_run_is_running_while_its_process_lives_and_interrupted_once_that_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LIVES, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        before = sorted(path.name for path in tmp_path.iterdir())
        assert state_of(tmp_path) == "running"
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and its number not yet free
        assert state_of(tmp_path) == "interrupted"
    finally:
        process.kill()
        process.wait(10)
    found = read_state(tmp_path, is_spent=False)
    assert found.state == "interrupted"
    assert "killed" in found.reason


def test_an_end_is_recorded_as_it_came(tmp_path: Path) -> None:
    for name, error in (("finished", None), ("failed", ValueError("two\nlines")), ("interrupted", KeyboardInterrupt())):
        folder = tmp_path / name
        folder.mkdir()
        if error is None:
            with RunLife(folder) as life:
                life.begin()
        else:
            with pytest.raises(type(error)), RunLife(folder) as life:
                life.begin()
                raise error
        assert state_of(folder) == name
    assert read_state(tmp_path / "failed", is_spent=False).reason == "ValueError: two … lines"
    with RunLife(tmp_path / "finished") as life:
        life.begin()
        life.interrupted = True
    assert state_of(tmp_path / "finished") == "interrupted"


def test_what_fails_before_the_run_begins_leaves_the_former_record(tmp_path: Path) -> None:
    with RunLife(tmp_path) as life:
        life.begin()
    with pytest.raises(ValueError, match="refused"), RunLife(tmp_path):
        raise ValueError("refused")
    assert state_of(tmp_path) == "finished"


def test_a_later_process_with_the_same_number_is_not_taken_for_the_run(tmp_path: Path) -> None:
    own = Process.own()
    assert own.started is not None
    record(tmp_path, own)
    assert state_of(tmp_path) == "running"
    record(tmp_path, replace(own, started=own.started - 1))
    assert state_of(tmp_path) == "interrupted"


@pytest.mark.parametrize("elsewhere", [{"boot": "another kernel"}, {"namespace": "pid:[1]"}, {"started": None}])
def test_a_run_that_cannot_be_looked_for_goes_by_the_age_of_its_files(tmp_path: Path, elsewhere: dict) -> None:
    record(tmp_path, replace(Process.own(), host="node7", **elsewhere))
    recent = read_state(tmp_path, is_spent=False)
    assert recent.state == "running"
    assert "node7" in recent.reason
    make_old(tmp_path)
    assert state_of(tmp_path) == "interrupted"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "learner.log").touch()
    assert state_of(tmp_path) == "running"
    make_old(tmp_path / "logs")
    assert state_of(tmp_path) == "interrupted"
    (tmp_path / "logs" / "rank_1").mkdir()
    (tmp_path / "logs" / "rank_1" / "env_worker_0.log").touch()
    assert state_of(tmp_path) == "running"


@pytest.mark.parametrize(
    ("evaluation", "while_training", "closing"),
    [
        ("while_training/optimizer_step_20", "running", "running"),
        ("optimizer_step_20", "interrupted", "running"),  # before the end of its budget it is not the run's own
    ],
)
def test_a_run_elsewhere_that_plays_a_long_evaluation_is_running(
    tmp_path: Path, evaluation: str, while_training: str, closing: str
) -> None:
    record(tmp_path, replace(Process.own(), host="node7", boot="another kernel"))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "learner.log").touch()
    former, folder = tmp_path / "eval/while_training/optimizer_step_10", tmp_path / "eval" / evaluation
    for made in (former, folder):
        made.mkdir(parents=True)
        (made / "episodes.jsonl").touch()
    for quiet in (former, former.parent, tmp_path / "logs", tmp_path):
        make_old(quiet)
    os.utime(former, (0, 0))  # begun before the other
    assert state_of(tmp_path) == while_training
    assert state_of(tmp_path, is_spent=True) == closing
    make_old(folder)
    assert state_of(tmp_path, is_spent=True) == "interrupted"


def test_without_a_record_the_budget_decides(tmp_path: Path) -> None:
    assert state_of(tmp_path, is_spent=True) == "finished"
    assert state_of(tmp_path, is_spent=False) == "unknown"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"state": "asleep", "reason": ""}', '{"state": "running", "process": {"pid": "1"}}']
)
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ValueError, match=r"state\.json"):
        read_state(tmp_path, is_spent=False)


def test_a_message_for_people_has_no_type_and_a_long_one_is_cut() -> None:
    assert in_one_line(RunFailureError("no room")) == "no room"
    assert in_one_line(KeyError()) == "KeyError"
    assert len(in_one_line(RunFailureError("x" * 5000))) < 400
