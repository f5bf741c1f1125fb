import time
from types import SimpleNamespace

import pytest

from vla_rl.errors import CellFailureError
from vla_rl.ipc.counters import CellCounters, EnvWorkerPhase
from vla_rl.workers.cell import Cell, CellLimits
from vla_rl.workers.episodes import EpisodeJob, EpisodeRecord
from vla_rl.workers.messages import JobRequest, NoMoreJobs, StartRefusal


class IdleProcess:
    name = "inference_worker"
    pid = None
    exitcode = None

    def is_alive(self):
        return False

    def join(self, timeout):
        pass

    def kill(self):
        pass


class LivingProcess(IdleProcess):
    def is_alive(self):
        return True

    def kill(self):
        self.is_alive = lambda: False


def make_cell(counters, *env_workers, max_restarts=0, on_episode=lambda record: None, jobs=None):
    return Cell(
        inference=None,  # type: ignore[arg-type] # nothing is started
        env_workers=env_workers,
        slots=None,  # type: ignore[arg-type]
        counters=counters,
        weights=None,  # type: ignore[arg-type]
        ring=None,
        limits=CellLimits(step_timeout_s=60.0, start_timeout_s=60.0, max_restarts=max_restarts),
        on_episode=on_episode,
        jobs=jobs,
    )


def test_the_time_an_inference_worker_has_to_start_begins_with_its_start(monkeypatch):
    monkeypatch.setattr(Cell, "_spawn", lambda *_: IdleProcess())
    with CellCounters.create(num_env_workers=1) as counters:
        cell = make_cell(counters)
        counters.set("inference_heartbeat", -1000.0)  # the learner took long to be built
        counters.request_stop()
        cell.start()
        assert counters.silent_seconds("inference_heartbeat") < 60.0
        cell.close()


def test_a_worker_that_cannot_start_ends_the_cell_with_its_reason_alone_and_is_not_restarted(monkeypatch, tmp_path):
    def spawn(_cell, name, _target, args):
        if name == "inference_worker":
            return LivingProcess()
        args[1].supervisor.send(StartRefusal("no renderer works. Fix: install one"))
        return IdleProcess()

    monkeypatch.setattr(Cell, "_spawn", spawn)
    with CellCounters.create(num_env_workers=1) as counters:
        settings = SimpleNamespace(worker_index=0, slot_ids=(0,), log_path=tmp_path / "log")
        cell = make_cell(counters, settings, max_restarts=5)
        cell.start()
        deadline = time.monotonic() + 20
        with pytest.raises(CellFailureError) as failure:
            while time.monotonic() < deadline:
                cell.raise_if_failed()
        assert str(failure.value) == "no renderer works. Fix: install one"
        assert cell.restarts == 0
        monkeypatch.setattr("vla_rl.workers.cell.CLOSE_S", 0.1)
        cell.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_cell_answers_every_message_of_an_env_worker(monkeypatch, tmp_path):
    ends, episodes = [], []

    def spawn(_cell, name, _target, args):
        if name != "inference_worker":
            ends.append(args[1].supervisor)
        return LivingProcess()

    monkeypatch.setattr(Cell, "_spawn", spawn)
    monkeypatch.setattr("vla_rl.workers.cell.CLOSE_S", 0.1)
    job = EpisodeJob(task_index=0, init_state=3, seed=0, job_id=0)
    record = EpisodeRecord(job, True, False, True, 1.0, 8, 4, 0.5)
    with CellCounters.create(num_env_workers=1) as counters:
        settings = SimpleNamespace(worker_index=0, slot_ids=(0,), log_path=tmp_path / "log")
        cell = make_cell(counters, settings, on_episode=episodes.append, jobs=iter([job]))
        cell.start()
        answers = []
        for message in (JobRequest(), record, JobRequest()):
            ends[0].send(message)
            if message == JobRequest():
                assert ends[0].poll(20)
                answers.append(ends[0].recv())
        assert answers == [job, NoMoreJobs()]
        assert episodes == [record]  # heard before the request that came after it

        ends[0].send("job?")  # nothing that the protocol knows
        deadline = time.monotonic() + 20
        with pytest.raises(CellFailureError):
            while time.monotonic() < deadline:
                cell.raise_if_failed()
        cell.close()


@pytest.mark.parametrize(("phase", "version", "first"), [("STARTING", -1, "kill"), ("RESETTING", 0, "join")])
def test_processes_that_still_start_are_ended_at_once_and_others_get_time(monkeypatch, tmp_path, phase, version, first):
    class Noted(LivingProcess):
        def __init__(self):
            self.calls = []

        def kill(self):
            self.calls.append("kill")
            super().kill()

        def join(self, timeout):
            self.calls.append("join")

    spawned = []
    monkeypatch.setattr(Cell, "_spawn", lambda *_: spawned.append(Noted()) or spawned[-1])
    with CellCounters.create(num_env_workers=1) as counters:
        cell = make_cell(counters, SimpleNamespace(worker_index=0, slot_ids=(0,), log_path=tmp_path / "log"))
        cell.start()
        counters.set("env_worker_phase", EnvWorkerPhase[phase], 0)
        counters.set("inference_policy_version", version)
        cell.close()
    assert [process.calls[0] for process in spawned] == [first, first]


def look(cell, times=1):
    """Wait until the watching thread has looked so often, or has found a failure."""
    end = time.perf_counter() + 60
    for _ in range(times):
        before = cell._looked
        while cell._looked == before and cell._failure is None and time.perf_counter() < end:
            time.sleep(0.001)


def test_a_pause_of_everything_is_not_taken_for_silence_and_silence_after_it_is(monkeypatch, tmp_path):
    """Ctrl-Z and fg: the clock has moved on, and nothing has given a sign of life."""
    monotonic, moved = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + moved[0])
    monkeypatch.setattr(Cell, "_spawn", lambda *_: LivingProcess())
    monkeypatch.setattr(Cell, "_dump_stack", lambda *_: None)
    monkeypatch.setattr("vla_rl.workers.cell.WATCH_PERIOD_S", 0.01)
    monkeypatch.setattr("vla_rl.workers.cell.PAUSE_S", 10.0)  # a busy machine delays the watch; time is faster below
    with CellCounters.create(num_env_workers=1) as counters:
        settings = SimpleNamespace(worker_index=0, slot_ids=(0,), log_path=tmp_path / "log")
        cell = make_cell(counters, settings)
        cell._inference_settings = settings
        cell.start()
        look(cell, times=2)
        moved[0] += 1000.0
        look(cell, times=3)
        cell.raise_if_failed()
        with pytest.raises(CellFailureError, match=r"for 6[0-9] s .*\(allowed: 60 s, rollout\.start_timeout_s\)"):
            for _ in range(200):
                moved[0] += 1.0
                look(cell)
                cell.raise_if_failed()
        monkeypatch.setattr("vla_rl.workers.cell.CLOSE_S", 0.1)
        cell.close()
