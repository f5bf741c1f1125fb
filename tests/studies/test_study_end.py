"""The end of a study on the command line: results first, then what went wrong."""

import os
import signal
import threading
import time
from dataclasses import dataclass

import pytest
from some_work import some_work

from vla_rl.cli.study.options import carry_out
from vla_rl.errors import RunFailureError, UserError
from vla_rl.studies.jobs import Job
from vla_rl.studies.pace import Expected

# Stands in for `vla-rl`: "slow" says that it has begun and sleeps, "fails" fails, anything else succeeds.
FAKE = """
import sys, time
from pathlib import Path
word, folder = sys.argv[3:5]
if word == "slow":
    (Path(folder).parents[1] / "slow").touch()
    time.sleep(60)
sys.exit(word == "fails")
"""


@dataclass
class Page:
    files: list[str]


@pytest.fixture
def study(stand_in, tmp_path):
    """Carry a study out; its page lists the jobs that have finished."""
    stand_in(FAKE)

    def write(out):
        names = sorted(path.parent.name for path in out.glob("jobs/*/done.json"))
        (out / "page").write_text(" ".join(names))
        return Page(["page"])

    def job(word):
        return Job(
            name=word,
            arguments=lambda folder: [word, str(folder)],
            expected=Expected(1.0, 1.0),
            share=lambda _: 0.0,
            record={},
        )

    def refuse(_out):
        raise ValueError("broken.json: not whole")

    def carry(*words, says_something=True, can_be_written=True):
        work = some_work(tmp_path, [job(word) for word in words])
        carry_out(
            work, at_once=1, says_something=lambda _: says_something, write_study=write if can_be_written else refuse
        )

    return carry


def interrupt_when(path):
    def wait():
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def test_an_interrupted_study_writes_the_results_of_what_has_finished(study, tmp_path, capsys):
    interrupt_when(tmp_path / "slow")
    with pytest.raises(KeyboardInterrupt):
        study("a", "slow", "b")
    assert (tmp_path / "page").read_text() == "a"
    assert capsys.readouterr().out.endswith("wrote page\n")


def test_results_that_cannot_be_written_do_not_hide_what_ended_the_study(study, tmp_path, capsys):
    with pytest.raises(RunFailureError, match="1 job failed"):
        study("a", "fails", can_be_written=False)
    assert "no results were written: broken.json: not whole" in capsys.readouterr().err
    interrupt_when(tmp_path / "slow")
    with pytest.raises(KeyboardInterrupt):
        study("slow", can_be_written=False)
    with pytest.raises(UserError, match="broken"):
        study("a", can_be_written=False)


def test_an_interrupted_study_in_which_nothing_has_finished_writes_none(study, tmp_path):
    interrupt_when(tmp_path / "slow")
    with pytest.raises(KeyboardInterrupt):
        study("slow", says_something=False)
    assert not (tmp_path / "page").exists()


def test_a_study_with_a_failed_job_writes_its_results_and_names_the_log(study, tmp_path):
    with pytest.raises(RunFailureError, match=r"^1 job failed; run .*\n  fails: see .*/fails\.failed/output\.log$"):
        study("a", "fails", "b")
    assert (tmp_path / "page").read_text() == "a b"
