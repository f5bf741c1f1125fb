"""The jobs of a study: in the order of their needs, within the cores, continued or begun again."""

import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from some_work import some_work

from vla_rl.errors import UserError
from vla_rl.studies import jobs as study_jobs
from vla_rl.studies.jobs import Job, run_study
from vla_rl.studies.pace import Expected

# Stands in for `vla-rl`: notes when it began and ended, its environment and what its folder held; `fail` fails,
# `with-c` goes on until `c` has begun, but no longer than half a minute, and `saves` saves once it is asked to end
# and may.
FAKE = """
import os, signal, sys, time
from pathlib import Path
word, folder = sys.argv[3:5]
journal = Path(folder).parents[1] / "journal"
with journal.open("a") as file:
    kept = "kept" if (Path(folder) / "half").exists() else "fresh"
    file.write(f"begin {word} {os.environ['OMP_NUM_THREADS']} {kept}\\n")
if word == "saves":
    def save(*_):
        (journal.parent / "asked").touch()
        while not (journal.parent / "may_save").exists():
            time.sleep(0.02)
        (journal.parent / "saving").write_text("saved")
        sys.exit()
    signal.signal(signal.SIGTERM, save)
    (journal.parent / "saving").touch()
    time.sleep(600)
gives_up = time.monotonic() + 30
while word == "with-c" and "begin c" not in journal.read_text() and time.monotonic() < gives_up:
    time.sleep(0.02)
time.sleep(0.3)
with journal.open("a") as file:
    file.write(f"end {word}\\n")
sys.exit(word == "fail")
"""


@pytest.fixture
def out(stand_in, tmp_path):
    stand_in(FAKE)
    return tmp_path


class Clock:
    """The time of a study, which the test may move on."""

    def __init__(self, poll_s=0.0):
        self.moved, self._poll_s = 0.0, poll_s

    def monotonic(self):
        return time.monotonic() + self.moved

    def sleep(self, seconds):
        time.sleep(seconds)
        self.moved += self._poll_s


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def job(name, *, word=None, cores=1, needs=(), continues=False):
    return Job(
        name=name,
        arguments=lambda folder: [word or name, str(folder)],
        expected=Expected(start=1.0, training=1.0, cores=cores),
        share=lambda _: 0.0,
        record={"name": name},
        needs=needs,
        continues=continues,
    )


def run(out, jobs, *, at_once):
    return run_study(some_work(out, jobs), at_once=at_once, say=lambda _: None)


def journal(out):
    return [line.split()[:2] for line in (out / "journal").read_text().splitlines()]


def test_a_job_waits_for_those_it_needs_and_others_pass_it(out):
    run(out, [job("a", word="with-c"), job("b", needs=("a",)), job("c")], at_once=2)
    lines = journal(out)
    assert lines.index(["begin", "b"]) > lines.index(["end", "with-c"])
    assert lines.index(["begin", "c"]) < lines.index(["end", "with-c"])


def test_what_a_job_is_told_may_depend_on_what_it_needs(out):
    def told(folder):
        return [f"after-{(out / 'jobs' / 'a' / 'done.json').exists()}", str(folder)]

    second = Job(name="b", arguments=told, expected=Expected(1.0, 1.0), share=lambda _: 0.0, record={}, needs=("a",))
    run(out, [job("a"), second], at_once=2)
    assert ["begin", "after-True"] in journal(out)


def test_a_job_of_two_cores_runs_alone_on_two_and_has_two_threads(out):
    run(out, [job("a"), job("wide", cores=2), job("c")], at_once=2)
    assert [line.split()[2] for line in (out / "journal").read_text().splitlines() if "begin" in line] == [
        "1",
        "2",
        "1",
    ]
    lines = journal(out)
    assert lines.index(["begin", "wide"]) > lines.index(["end", "a"])
    assert lines.index(["begin", "c"]) > lines.index(["end", "wide"])


def test_a_job_of_two_cores_runs_on_one_where_there_is_no_other(out):
    assert [each.name for each in run(out, [job("wide", cores=2)], at_once=1).finished] == ["wide"]


def test_jobs_that_need_a_failed_one_are_not_started_and_all_others_are(out):
    jobs = [job("a", word="fail"), job("b", needs=("a",)), job("c", needs=("b",)), job("d")]
    progress = run(out, jobs, at_once=1)
    assert [each.name for each in progress.failed] == ["a"]
    assert [each.name for each in progress.blocked] == ["b", "c"]
    assert [each.name for each in progress.finished] == ["d"]
    progress = run(out, [job("a"), *jobs[1:]], at_once=1)
    assert (progress.kept, [each.name for each in progress.finished]) == (1, ["a", "b", "c"])


@pytest.mark.parametrize("state", ["unfinished", "failed"])
@pytest.mark.parametrize(("continues", "found"), [(True, "kept"), (False, "fresh")])
def test_an_interrupted_or_failed_job_goes_on_in_its_folder_or_begins_again(out, continues, found, state):
    folder = out / "jobs" / f"a.{state}"
    folder.mkdir(parents=True)
    (folder / "half").touch()
    run(out, [job("a", continues=continues)], at_once=1)
    assert (out / "journal").read_text().split()[3] == found
    assert [path.name for path in (out / "jobs").iterdir()] == ["a"]


def seconds_of(out, name):
    return json.loads((out / "jobs" / name / "done.json").read_text())["seconds"]


@pytest.mark.parametrize(("continues", "counted"), [(True, True), (False, False)])
def test_a_job_that_is_continued_after_a_failure_counts_the_time_before(out, monkeypatch, continues, counted):
    clock = Clock(poll_s=1000.0)
    monkeypatch.setattr(study_jobs, "time", clock)
    jobs = [job("a", word="fail", continues=continues)]
    for _ in range(3):
        run(out, jobs, at_once=1)
    began = clock.monotonic()
    run(out, [replace(jobs[0], arguments=lambda folder: ["a", str(folder)])], at_once=1)
    took = clock.monotonic() - began
    assert (seconds_of(out, "a") > took) == counted
    assert sorted(path.name for path in (out / "jobs" / "a").iterdir()) == ["done.json", "output.log"]


def test_a_job_that_is_continued_after_an_interruption_counts_the_time_before(out, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(study_jobs, "time", clock)

    def stop():
        wait_for(out / "saving")
        clock.moved += 1000.0
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(out / "asked")
        clock.moved += 100.0
        (out / "may_save").touch()

    threading.Thread(target=stop, daemon=True).start()
    assert run(out, [job("a", word="saves", continues=True)], at_once=1).interrupted
    run(out, [job("a", continues=True)], at_once=1)
    assert seconds_of(out, "a") > 1100.0


def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_written(out):
    with pytest.raises(UserError, match=r"^--out: .*found \S+/n\\udcff, from which .* choose another name"):
        run(out / os.fsdecode(b"n\xff"), [job("a")], at_once=1)
    assert list(out.glob("n*")) == []


def test_a_job_is_tidied_up_before_it_has_its_final_name(out):
    tidied = []

    def tidy(folder):
        tidied.append((folder.name, (folder / "done.json").exists()))

    run(out, [replace(job("a"), tidy=tidy)], at_once=1)
    assert tidied == [("a.unfinished", True)]


@pytest.mark.parametrize(("continues", "ends"), [(True, "of itself"), (False, "killed")])
def test_an_interrupted_study_waits_longer_for_jobs_that_save_what_they_go_on_from(out, monkeypatch, continues, ends):
    monkeypatch.setattr(study_jobs, "STOP_S", 0.1)
    has_ended = threading.Event()

    def stop():
        wait_for(out / "saving")
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(out / "asked")
        if not has_ended.wait(0.5 if continues else 20.0):  # past the time of those that are not continued
            (out / "may_save").touch()

    threading.Thread(target=stop, daemon=True).start()
    progress = run(out, [job("a", word="saves", continues=continues)], at_once=1)
    has_ended.set()
    assert (progress.interrupted, progress.finished) == (True, [])
    assert ((out / "saving").read_text() == "saved") == (ends == "of itself")
