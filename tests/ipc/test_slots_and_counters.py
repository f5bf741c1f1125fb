from __future__ import annotations

import multiprocessing
import time

from vla_rl.ipc.counters import CellCounters, EnvWorkerPhase
from vla_rl.ipc.shared_arrays import SharedArrays, SharedArraysHandle
from vla_rl.ipc.slots import ExchangeSlots, slot_fields
from vla_rl.types import ActionSpec, ObservationSpec

ACTIONS = ActionSpec(chunk_size=2, action_dim=3, num_bins=16)


def work(handle: SharedArraysHandle, index: int) -> None:
    counters = CellCounters.attach(handle)
    for _ in range(5):
        counters.add("env_worker_decisions", 1, index)
        counters.add("env_worker_env_steps", 2, index)
    counters.set("env_worker_phase", EnvWorkerPhase.STEPPING, index)
    counters.add("env_worker_wait_seconds", 0.25, index)
    counters.beat("env_worker_heartbeat", index)
    assert counters.stop_requested


def test_slots_have_the_shapes_of_the_specs():
    fields = slot_fields(ObservationSpec(num_images=2, image_size=8, state_dim=5), ACTIONS, 4, store_logits=True)
    with SharedArrays.create("slots", fields) as arrays:
        slots = ExchangeSlots.view(arrays)
        assert slots.frames.shape == (4, 2, 8, 8, 3)
        assert slots.state.shape == (4, 5)
        assert slots.tokens.shape == slots.logprobs.shape == (4, 6)
        assert slots.actions.shape == (4, 2, 3)
        assert slots.logits is not None
        assert slots.logits.shape == (4, 6, 16)
        assert (slots.tokens == -(2**15)).all()
        slots.value[2] = 1.5
        assert arrays["value"][2] == 1.5


def test_slots_without_images_and_logits_are_small():
    fields = slot_fields(ObservationSpec(num_images=0, image_size=0, state_dim=5), ACTIONS, 4, store_logits=False)
    with SharedArrays.create("slots", fields) as arrays:
        slots = ExchangeSlots.view(arrays)
        assert slots.frames.size == 0
        assert slots.logits is None


def test_counters_start_at_zero_without_a_limit():
    before = time.monotonic()
    with CellCounters.create(num_env_workers=3) as counters:
        assert [counters.get("env_worker_episodes", index) for index in range(3)] == [0, 0, 0]
        assert counters.get("allowed_decisions") == 2**63 - 1
        assert counters.get("inference_policy_version") == -1
        assert counters.get("env_worker_phase", 2) == EnvWorkerPhase.STARTING
        assert before <= counters.get("env_worker_heartbeat", 1) <= time.monotonic()
        assert not counters.stop_requested


def test_counters_of_spawned_workers_are_summed_in_the_parent():
    context = multiprocessing.get_context("spawn")
    with CellCounters.create(num_env_workers=2) as counters:
        counters.request_stop()
        counters.set("env_worker_heartbeat", 0.0, 1)
        before = time.monotonic()
        children = [context.Process(target=work, args=(counters.handle, index)) for index in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
        assert [child.exitcode for child in children] == [0, 0]
        assert counters.total("env_worker_decisions") == 10
        assert counters.get("env_worker_env_steps", 1) == 10
        assert counters.total("env_worker_wait_seconds") == 0.5
        assert isinstance(counters.total("env_worker_decisions"), int)
        assert counters.get("env_worker_phase", 0) == EnvWorkerPhase.STEPPING
        assert 0 <= counters.silent_seconds("env_worker_heartbeat", 1) <= time.monotonic() - before
        assert [counters.get("env_worker_decisions", index) for index in range(2)] == [5, 5]
