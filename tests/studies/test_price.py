"""What is left of a study, in words, and how many of its jobs fit in memory at once."""

import pytest
import torch

from vla_rl.envs.libero.child import Outcome
from vla_rl.errors import UserError
from vla_rl.studies import price as study_price
from vla_rl.studies.gpu_room import available_gpu_memory
from vla_rl.studies.jobs import Job, Work
from vla_rl.studies.pace import Expected, Memory
from vla_rl.studies.price import check_memory, price, usual_jobs, why_one

GIB = 2**30


def work(folder, *jobs, on_gpu=False):
    return Work(
        jobs=jobs,
        out=folder,
        folder=folder,
        begin=lambda: None,
        record_file="done.json",
        noun="runs",
        what="a × b",
        kind_field="stage",
        on_gpu=on_gpu,
    )


def job(name, *, minutes=10.0, cores=1, memory=4 * GIB, gpu=0, stage="run"):
    return Job(
        name=name,
        arguments=lambda _: [],
        expected=Expected(start=0.0, training=60 * minutes, cores=cores, memory=Memory(memory, gpu)),
        share=lambda _: 0.0,
        record={"stage": stage},
    )


def finish(work, name):
    (work.folder / name).mkdir(parents=True)
    (work.folder / name / work.record_file).touch()


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight cores, 10 GiB, and 20 GiB on a GPU."""
    monkeypatch.setattr(study_price, "available_memory", lambda: 10 * GIB)
    monkeypatch.setattr(study_price, "available_gpu_memory", lambda: 20 * GIB)
    monkeypatch.setattr(study_price, "usable_cores", lambda: 8)


def test_the_price_is_that_of_what_is_left(tmp_path):
    study = work(tmp_path, job("a"), job("b", minutes=30), job("c", minutes=60, cores=2, stage="demos"))
    assert price(study, at_once=2).splitlines() == [
        "a × b",
        "run            2 runs  about 40.0 core minutes, the longest 30.0 minutes",
        "demos          1 runs  about 2.0 core hours, the longest 60.0 minutes",
        "3 runs, 2 at once: about 80.0 minutes (2.7 core hours)",
        "memory: 4.0 GiB each, 8.0 GiB at once; 10.0 GiB are available",
    ]
    finish(study, "c")
    assert price(study, at_once=2).splitlines()[1:] == [
        "run            2 runs  about 40.0 core minutes, the longest 30.0 minutes",
        "2 runs (1 of 3 finished), 2 at once: about 30.0 minutes (40.0 core minutes)",  # the longest runs on one core
        "memory: 4.0 GiB each, 8.0 GiB at once; 10.0 GiB are available",
    ]
    finish(study, "a")
    finish(study, "b")
    assert price(study, at_once=2) == "a × b\n0 runs (3 of 3 finished), 2 at once: about 0.0 minutes (0.0 core minutes)"


def test_as_many_jobs_run_as_there_are_cores_if_they_fit_in_memory(tmp_path):
    assert usual_jobs(work(tmp_path, job("a"), job("b", memory=GIB))) == 2  # of 4 GiB, the larger
    assert usual_jobs(work(tmp_path, job("a", memory=GIB))) == 8
    assert usual_jobs(work(tmp_path, job("a", memory=0))) == 8  # not estimated
    assert usual_jobs(work(tmp_path, job("a", memory=11 * GIB))) == 1  # which is then refused


def test_more_jobs_than_fit_in_memory_are_refused_with_the_number_that_fits(tmp_path):
    study = work(tmp_path, job("a"), job("b"), job("c"))
    check_memory(study, at_once=2)
    with pytest.raises(UserError, match=r"--jobs: 3 of these runs need 12\.0 GiB .* 10\.0 GiB .*; choose --jobs 2$"):
        check_memory(study, at_once=64)
    finish(study, "a")
    check_memory(study, at_once=64)  # two are left
    with pytest.raises(UserError, match=r"--jobs: 1 of these runs need 11\.0 GiB .* make the recipe smaller"):
        check_memory(work(tmp_path, job("d", memory=11 * GIB)), at_once=1)


def test_on_a_gpu_as_many_jobs_run_as_fit_in_its_memory_too(tmp_path):
    study = work(tmp_path, *(job(name, memory=GIB, gpu=6 * GIB) for name in "abcd"), on_gpu=True)
    assert (usual_jobs(study), why_one(study)) == (3, "")
    assert price(study, at_once=3).splitlines()[-2:] == [
        "memory: 1.0 GiB each, 3.0 GiB at once; 10.0 GiB are available",
        "GPU memory: 6.0 GiB each, 18.0 GiB at once; 20.0 GiB are available",
    ]
    assert usual_jobs(work(tmp_path, job("a", gpu=GIB), on_gpu=True)) == 2  # of 4 GiB on the host
    check_memory(study, at_once=3)
    with pytest.raises(UserError, match=r"--jobs: 4 .* 24\.0 GiB of GPU memory .* 20\.0 GiB .*; choose --jobs 3$"):
        check_memory(study, at_once=4)


def test_one_job_is_left_to_a_gpu_that_may_be_too_small_and_two_are_refused(tmp_path):
    large = work(tmp_path, job("a", gpu=21 * GIB), job("b", gpu=21 * GIB), on_gpu=True)
    assert usual_jobs(large) == 1
    check_memory(large, at_once=1)
    with pytest.raises(UserError, match=r"42\.0 GiB of GPU memory .*; choose --jobs 1$"):
        check_memory(large, at_once=2)


def test_jobs_run_one_at_a_time_on_a_gpu_of_which_nothing_is_known(tmp_path, monkeypatch):
    study = work(tmp_path, job("a", memory=GIB, gpu=GIB), job("b"), on_gpu=True)
    monkeypatch.setattr(study_price, "available_gpu_memory", lambda: None)
    for unknown in (study, work(tmp_path, job("a", memory=GIB), on_gpu=True)):
        assert usual_jobs(unknown) == 1
        assert "how many fit in its memory is not known; --jobs 2" in why_one(unknown)
        check_memory(unknown, at_once=2)


def test_a_process_of_its_own_is_asked_for_the_free_memory_of_the_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 9 * GIB))

    def process(code, *, seconds):
        exec(code, {})
        return Outcome(ok=True, output=capsys.readouterr().out.strip(), reason="")

    assert available_gpu_memory(run=process) == 5 * GIB
    for nothing in (Outcome(ok=False, output="", reason="no driver"), Outcome(ok=True, output="", reason="")):
        assert available_gpu_memory(run=lambda code, *, seconds, answer=nothing: answer) is None
