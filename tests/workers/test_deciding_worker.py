"""Env workers that decide themselves: what they ask of their server, and what they tell the cell."""

import logging
import time
from contextlib import contextmanager
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest

from vla_rl.errors import RunFailureError
from vla_rl.ipc.counters import CellCounters
from vla_rl.ipc.shared_arrays import SharedArrays
from vla_rl.ipc.slots import slot_fields
from vla_rl.types import ActionSpec, ObservationSpec
from vla_rl.workers import deciding_worker
from vla_rl.workers.cell import Cell, CellLimits
from vla_rl.workers.deciding_worker import OwnDecisions, deciding_worker_main, go_on_counting, own_seed
from vla_rl.workers.env_worker import EnvWorkerLinks
from vla_rl.workers.messages import StartRefusal


class Server:
    """Notes what is asked of it, in order."""

    batches = decisions = 0
    busy_seconds = 0.0

    def __init__(self):
        self.calls: list[Any] = []

    def adopt(self):
        self.calls.append("adopt")

    def serve(self, slots):
        self.calls.append(list(slots))


def test_all_slots_that_asked_are_decided_in_one_batch_under_the_newest_weights():
    server, reported = Server(), []
    decider = OwnDecisions(server, report=reported.append)  # type: ignore[arg-type]
    decider.ask([0, 2])
    decider.ask([1])
    assert server.calls == []
    assert decider.answered(60.0) == [0, 2, 1]
    assert server.calls == ["adopt", [0, 2, 1]]
    assert reported == [server]
    decider.ask([2])
    assert decider.answered(60.0) == [2]
    assert server.calls[2:] == ["adopt", [2]]


def test_without_a_question_it_waits_and_answers_nothing():
    server = Server()
    decider = OwnDecisions(server, report=lambda _: None)  # type: ignore[arg-type]
    began = time.monotonic()
    assert decider.answered(0.05) == []
    assert time.monotonic() - began >= 0.05
    assert server.calls == []


def test_every_worker_and_every_start_draws_other_random_numbers_and_the_same_in_each_run():
    seeds = [own_seed(seed, worker, start) for seed in (7, 8) for worker in (0, 1) for start in (0, 1)]
    assert len(set(seeds)) == 8
    assert seeds == [own_seed(seed, worker, start) for seed in (7, 8) for worker in (0, 1) for start in (0, 1)]
    assert own_seed(None, 1, 0) is None  # an evaluation's decisions have seeds of their own


def test_a_restarted_workers_counts_go_on_from_its_predecessors():
    server: Any = Server()
    with CellCounters.create(num_env_workers=2, num_servers=2) as counters:
        counters.set("inference_batches", 5, 1)
        counters.set("inference_decisions", 40, 1)
        counters.set("inference_busy_seconds", 1.5, 1)
        go_on_counting(server, counters, 1)
        assert (server.batches, server.decisions, server.busy_seconds) == (5, 40, 1.5)


def test_a_cell_whose_env_workers_decide_starts_nothing_else(monkeypatch, tmp_path):
    started = []

    def spawn(_cell, name, target, args):
        started.append((name, target, args[3:]))
        return SimpleNamespace(is_alive=lambda: True, join=lambda _: None, kill=lambda: None, pid=None, name=name)

    monkeypatch.setattr(Cell, "_spawn", spawn)
    monkeypatch.setattr("vla_rl.workers.cell.CLOSE_S", 0.1)
    workers = [SimpleNamespace(worker_index=i, slot_ids=(i,), log_path=tmp_path / "log") for i in range(2)]
    with CellCounters.create(num_env_workers=2, num_servers=2) as counters:
        counters.set("inference_heartbeat", -1000.0)  # nobody beats it
        cell = Cell(
            inference="settings",  # type: ignore[arg-type]
            env_workers=workers,  # type: ignore[arg-type]
            slots=None,  # type: ignore[arg-type]
            counters=counters,
            weights="weights",  # type: ignore[arg-type]
            ring=None,
            limits=CellLimits(step_timeout_s=60.0, start_timeout_s=60.0, max_restarts=0),
            on_episode=lambda _: None,
            env_workers_decide=True,
        )
        cell.start()
        time.sleep(0.3)  # three rounds of the watching thread
        cell.raise_if_failed()
        cell.close()
    assert started == [(f"env_worker_{i}", deciding_worker_main, ("settings", "weights")) for i in range(2)]


def test_counts_of_several_servers_are_summed_and_the_longest_wait_for_weights_is_shown():
    with CellCounters.create(num_env_workers=1, num_servers=2) as counters:
        assert counters.num_servers == 2
        assert [counters.get("inference_policy_version", index) for index in range(2)] == [-1, -1]
        for index, amount in enumerate((3, 4)):
            counters.set("inference_decisions", amount, index)
            counters.set("inference_adopt_seconds", amount / 10, index)
        assert counters.total("inference_decisions") == 7
        assert counters.highest("inference_adopt_seconds") == pytest.approx(0.4)


def test_a_policy_without_finite_outputs_ends_the_cell_and_is_not_started_again(monkeypatch, tmp_path):
    """What the policy does wrong it would do again: the supervisor hears of it in place of a mere death."""

    class Failing:
        def __init__(self, *_):
            pass

        def run(self):
            raise RunFailureError("policy version 3 gives non-finite outputs")

        def close(self):
            pass

    @contextmanager
    def attached(*_):
        server = Server()
        server.adopt = lambda: True  # type: ignore[method-assign]
        yield server

    monkeypatch.setattr(deciding_worker, "enter_child", lambda *_, **__: logging.getLogger())
    monkeypatch.setattr(deciding_worker, "attached_server", attached)
    monkeypatch.setattr(deciding_worker, "EnvWorker", Failing)
    supervisor, child_end = Pipe()
    settings: Any = SimpleNamespace(worker_index=0, slot_ids=(0,), log_path=tmp_path / "log", variables={})
    inference: Any = SimpleNamespace(device="cpu", seed=1, threads=1)
    monkeypatch.setattr(deciding_worker, "replace", lambda settings, **_: settings)
    fields = slot_fields(ObservationSpec(0, 0, 1), ActionSpec(3, 1, 4), num_slots=1, store_logits=False)
    with SharedArrays.create("slots", fields) as arrays, CellCounters.create(num_env_workers=1) as counters:
        links = EnvWorkerLinks(arrays.handle, counters.handle, None, child_end, child_end)
        with pytest.raises(RunFailureError):
            deciding_worker_main(settings, links, 0, inference, weights=None)  # type: ignore[arg-type]
    assert supervisor.poll(1)
    assert supervisor.recv() == StartRefusal("policy version 3 gives non-finite outputs")
