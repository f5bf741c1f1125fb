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


SIDE_BY_SIDE = pytest.mark.parametrize("slot_limit_s", [None, 60.0], ids=["in turn", "side by side"])


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


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make_settings(log_path, *, num_slots, builder=OneStepEnv, queue_jobs=True, slot_limit_s=None):
    return EnvWorkerSettings(
        worker_index=0, slot_ids=tuple(range(num_slots)), first_env_index=0, num_envs=num_slots, builders=(builder,),
        num_init_states=(None,), transform=None, seed=0, max_open_envs_per_slot=1, first_episode=0,
        queue_jobs=queue_jobs, log_path=log_path, slot_limit_s=slot_limit_s,
    )  # fmt: skip


def fields_of(num_slots):
    return slot_fields(ObservationSpec(0, 0, 1), ActionSpec(3, 1, 4), num_slots=num_slots, store_logits=False)


@contextmanager
def running_worker(tmp_path, *, num_slots, allowed_decisions=None, **changed):
    """A worker in a thread; yields its counters, its inference worker's and its supervisor's end, and the thread."""
    inference, worker_end = Pipe()
    supervisor, child_end = Pipe()
    settings = make_settings(tmp_path / "log", num_slots=num_slots, **changed)
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
        try:
            yield counters, inference, supervisor, thread
        finally:
            counters.request_stop()
            thread.join(20)
        assert not thread.is_alive()
        worker.close()


@SIDE_BY_SIDE
def test_the_time_that_the_governor_holds_a_worker_back_is_no_waiting_for_actions(tmp_path, slot_limit_s):
    with running_worker(tmp_path, num_slots=1, allowed_decisions=0, slot_limit_s=slot_limit_s) as (
        counters,
        inference,
        supervisor,
        _,
    ):
        assert heard(supervisor) == JobRequest()
        supervisor.send(EpisodeJob(task_index=0, init_state=0, seed=0, job_id=0))
        wait_until(lambda: counters.total("env_worker_held_back_seconds") >= 0.1)
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


@SIDE_BY_SIDE
@pytest.mark.parametrize("error", [SimulatorError("no renderer works. Fix: install one"), OSError("a hiccup")])
def test_what_no_restart_would_mend_is_told_to_the_supervisor(tmp_path, error, slot_limit_s):
    def fail():
        raise error

    (_inference, worker_end), (supervisor, child_end) = Pipe(), Pipe()
    settings = make_settings(tmp_path / "log", num_slots=1, builder=fail, queue_jobs=False, slot_limit_s=slot_limit_s)
    with SharedArrays.create("slots", fields_of(1)) as arrays, CellCounters.create(num_env_workers=1) as counters:
        links = EnvWorkerLinks(arrays.handle, counters.handle, None, worker_end, child_end)
        worker = EnvWorker(settings, links, 0, ExchangeSlots.view(arrays), WorkerCounters(counters, 0), None)
        with pytest.raises(type(error)):
            worker.run()
    told = supervisor.recv() if supervisor.poll() else None
    assert told == (StartRefusal(str(error)) if isinstance(error, SimulatorError) else None)


class MeetingEnv(OneStepEnv):
    """Neither a reset nor a chunk ends before another environment of the worker is inside one too."""

    def __init__(self, meeting):
        self.meeting = meeting

    def reset(self, init_state, *, seed=0):
        self.meeting.wait(20)
        return self.observe()

    def step_chunk(self, actions):
        self.meeting.wait(20)
        return super().step_chunk(actions)


def test_slots_play_side_by_side_where_their_simulators_are_elsewhere(tmp_path):
    meeting = threading.Barrier(2)
    with running_worker(
        tmp_path, num_slots=2, builder=lambda: MeetingEnv(meeting), queue_jobs=False, slot_limit_s=60.0
    ) as (counters, inference, supervisor, _):
        for episodes in range(3):
            assert sorted(requests(inference, 2)) == [0, 1]
            assert counters.total("env_worker_decisions") == 2 * episodes
            send_slots(inference, 0, [0, 1])
        assert sorted(requests(inference, 2)) == [0, 1]
        assert [heard(supervisor).decisions for _ in range(6)] == [1] * 6
        assert counters.total("env_worker_episodes") == 6


def test_a_slot_that_plays_holds_up_no_other(tmp_path):
    gate = threading.Event()

    class SlowOnce(OneStepEnv):
        built = 0

        def __init__(self):
            SlowOnce.built += 1
            self.is_slow = SlowOnce.built == 1

        def step_chunk(self, actions):
            assert not self.is_slow or gate.wait(20)
            return super().step_chunk(actions)

    with running_worker(tmp_path, num_slots=2, builder=SlowOnce, queue_jobs=False, slot_limit_s=60.0) as (
        counters, inference, _supervisor, _thread,
    ):  # fmt: skip
        assert sorted(requests(inference, 2)) == [0, 1]
        send_slots(inference, 0, [0, 1])
        (first,) = requests(inference, 1)
        for _ in range(5):
            send_slots(inference, 0, [first])
            assert requests(inference, 1) == [first]
        assert counters.total("env_worker_decisions") == 6
        gate.set()
        assert requests(inference, 1) == [1 - first]
        assert counters.total("env_worker_wait_seconds") < 20


def test_a_slot_whose_simulator_never_answers_ends_the_worker(tmp_path):
    gate = threading.Event()

    class Silent(OneStepEnv):
        def reset(self, init_state, *, seed=0):
            gate.wait(30)

    (_inference, worker_end), (_supervisor, child_end) = Pipe(), Pipe()
    settings = make_settings(tmp_path / "log", num_slots=2, builder=Silent, queue_jobs=False, slot_limit_s=0.2)
    with SharedArrays.create("slots", fields_of(2)) as arrays, CellCounters.create(num_env_workers=1) as counters:
        links = EnvWorkerLinks(arrays.handle, counters.handle, None, worker_end, child_end)
        worker = EnvWorker(settings, links, 0, ExchangeSlots.view(arrays), WorkerCounters(counters, 0), None)
        with pytest.raises(TimeoutError, match=r"slot \d: its simulator has not answered"):
            worker.run()
        gate.set()


@SIDE_BY_SIDE
def test_a_slot_that_has_nothing_to_play_yet_is_asked_again_later(tmp_path, monkeypatch, slot_limit_s):
    job = EpisodeJob(task_index=0, init_state=0, seed=0)
    monkeypatch.setattr(
        "vla_rl.workers.env_worker.scheduled_jobs", lambda *_, **__: iter([job, None, None, None, job, None, job])
    )
    with running_worker(tmp_path, num_slots=1, queue_jobs=False, slot_limit_s=slot_limit_s) as (
        counters, inference, _supervisor, thread,
    ):  # fmt: skip
        for _ in range(3):
            assert requests(inference, 1) == [0]
            send_slots(inference, 0, [0])
        thread.join(20)  # there is nothing after the last one
        assert not thread.is_alive()
        assert counters.total("env_worker_episodes") == 3
