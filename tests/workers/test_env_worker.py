"""The env worker's loop, its other ends played by the test: what it tells the cell about its slots and its time."""

import threading
import time
from contextlib import contextmanager
from multiprocessing import Pipe

import numpy as np
import pytest

from vla_rl.errors import SimulatorError
from vla_rl.ipc.counters import CellCounters, EnvWorkerPhase
from vla_rl.ipc.shared_arrays import SharedArrays
from vla_rl.ipc.slots import ExchangeSlots, slot_fields
from vla_rl.types import ActionSpec, ChunkResult, Observation, ObservationSpec, TaskInfo
from vla_rl.workers.env_worker import EnvWorker, EnvWorkerLinks, EnvWorkerSettings
from vla_rl.workers.episodes import EpisodeJob
from vla_rl.workers.messages import JobRequest, NoMoreJobs, StartRefusal, receive_slots, send_slots
from vla_rl.workers.worker_counters import WorkerCounters


class OneStepEnv:
    """Every episode ends with its first decision."""

    task = TaskInfo("toy", 0, "toy", "reach")

    def reset(self, init_state, *, seed=0):
        return self.observe()

    def step_chunk(self, actions):
        return ChunkResult(self.observe(), 0.0, False, True, len(actions))

    def observe(self):
        return Observation(np.zeros((0, 0, 0, 3), np.uint8), np.zeros(1, np.float32))

    def close(self):
        pass


def heard(connection):
    assert connection.poll(20)
    return connection.recv()


def requests(connection, count):
    """The slots of as many requests as are awaited."""
    asked = []
    while len(asked) < count:
        assert connection.poll(20)
        asked += receive_slots(connection)[1]
    return asked


def make_settings(log_path, *, num_slots, builder=OneStepEnv, queue_jobs=True):
    return EnvWorkerSettings(
        worker_index=0, slot_ids=tuple(range(num_slots)), first_env_index=0, num_envs=num_slots, builders=(builder,),
        num_init_states=(None,), transform=None, seed=0, max_open_envs_per_slot=1, first_episode=0,
        queue_jobs=queue_jobs, log_path=log_path,
    )  # fmt: skip


def fields_of(num_slots):
    return slot_fields(ObservationSpec(0, 0, 1), ActionSpec(3, 1, 4), num_slots=num_slots, store_logits=False)


@contextmanager
def running_worker(tmp_path, *, num_slots, allowed_decisions=None):
    """A worker in a thread; yields its counters, its inference worker's and its supervisor's end, and the thread."""
    inference, worker_end = Pipe()
    supervisor, child_end = Pipe()
    settings = make_settings(tmp_path / "log", num_slots=num_slots)
    with (
        SharedArrays.create("slots", fields_of(num_slots)) as arrays,
        CellCounters.create(num_env_workers=1) as counters,
    ):
        if allowed_decisions is not None:
            counters.set("allowed_decisions", allowed_decisions)
        links = EnvWorkerLinks(arrays.handle, counters.handle, None, worker_end, child_end)
        worker = EnvWorker(settings, links, 0, ExchangeSlots.view(arrays), WorkerCounters(counters, 0), None)
        thread = threading.Thread(target=worker.run)
        thread.start()
        yield counters, inference, supervisor, thread
        counters.request_stop()
        thread.join(20)
        assert not thread.is_alive()
        worker.close()


def test_the_time_that_the_governor_holds_a_worker_back_is_no_waiting_for_actions(tmp_path):
    with running_worker(tmp_path, num_slots=1, allowed_decisions=0) as (counters, inference, supervisor, _):
        assert heard(supervisor) == JobRequest()
        supervisor.send(EpisodeJob(task_index=0, init_state=0, seed=0, job_id=0))
        deadline = time.monotonic() + 20
        while counters.total("env_worker_held_back_seconds") < 0.1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert counters.get("env_worker_phase") == EnvWorkerPhase.HELD_BACK
        assert not inference.poll()  # nothing is asked meanwhile
        assert counters.total("env_worker_wait_seconds") == 0
        counters.set("allowed_decisions", 1)
        assert requests(inference, 1) == [0]


def test_a_worker_counts_the_slots_that_will_ask_again(tmp_path):
    with running_worker(tmp_path, num_slots=2) as (counters, inference, supervisor, thread):
        for number in range(2):
            assert heard(supervisor) == JobRequest()
            supervisor.send(EpisodeJob(task_index=0, init_state=number, seed=0, job_id=number))
        assert sorted(requests(inference, 2)) == [0, 1]
        assert counters.total("env_worker_open_slots") == 2

        send_slots(inference, 0, [0])
        assert heard(supervisor).job.job_id == 0
        assert heard(supervisor) == JobRequest()
        supervisor.send(EpisodeJob(task_index=0, init_state=2, seed=0, job_id=2))
        assert requests(inference, 1) == [0]
        send_slots(inference, 0, [1])
        assert heard(supervisor).job.job_id == 1
        assert heard(supervisor) == JobRequest()
        supervisor.send(NoMoreJobs())  # no more jobs: one slot is left
        send_slots(inference, 0, [0])
        assert heard(supervisor).job.job_id == 2
        assert counters.total("env_worker_open_slots") == 1

        assert heard(supervisor) == JobRequest()
        supervisor.send(NoMoreJobs())
        thread.join(20)
        assert not thread.is_alive()
        assert counters.total("env_worker_open_slots") == 0


@pytest.mark.parametrize("error", [SimulatorError("no renderer works. Fix: install one"), OSError("a hiccup")])
def test_what_no_restart_would_mend_is_told_to_the_supervisor(tmp_path, error):
    def fail():
        raise error

    (_inference, worker_end), (supervisor, child_end) = Pipe(), Pipe()
    settings = make_settings(tmp_path / "log", num_slots=1, builder=fail, queue_jobs=False)
    with SharedArrays.create("slots", fields_of(1)) as arrays, CellCounters.create(num_env_workers=1) as counters:
        links = EnvWorkerLinks(arrays.handle, counters.handle, None, worker_end, child_end)
        worker = EnvWorker(settings, links, 0, ExchangeSlots.view(arrays), WorkerCounters(counters, 0), None)
        with pytest.raises(type(error)):
            worker.run()
    told = supervisor.recv() if supervisor.poll() else None
    assert told == (StartRefusal(str(error)) if isinstance(error, SimulatorError) else None)
