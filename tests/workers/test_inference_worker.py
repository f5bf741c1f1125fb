"""Start of the inference worker: its device, its weights, its signs of life."""

import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vla_rl.ipc.counters import CellCounters
from vla_rl.ipc.cuda_memory import CudaMemoryHandle, SharingError
from vla_rl.ipc.shared_weights import NotShared, SharedWeights, SharedWeightsHandle, TensorPlace, share_tensors
from vla_rl.policies.devices import PeakMemory
from vla_rl.workers import inference_worker
from vla_rl.workers.inference_worker import beating, inference_worker_main, map_frozen, report, tensors_of


def test_a_worker_inside_a_long_call_gives_signs_of_life_until_its_time_is_up():
    with CellCounters.create(num_env_workers=1) as counters:
        counters.set("inference_heartbeat", 0.0)
        with beating(counters, at_most_s=60.0):
            deadline = time.monotonic() + 30.0
            while counters.get("inference_heartbeat") == 0.0:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        counters.set("inference_heartbeat", 0.0)
        with beating(counters, at_most_s=-1.0):
            time.sleep(0.6)
        assert counters.get("inference_heartbeat") == 0.0


def test_a_worker_makes_its_gpu_the_current_one_before_it_maps_anything(monkeypatch, tmp_path):
    class CurrentError(Exception):
        pass

    def set_device(device):
        raise CurrentError(device)

    monkeypatch.setattr(inference_worker, "enter_child", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    settings: Any = SimpleNamespace(device="cuda:2", threads=torch.get_num_threads(), log_path=tmp_path / "log")
    with pytest.raises(CurrentError, match="cuda:2"):
        inference_worker_main(settings, links=None)  # type: ignore[arg-type]


def unmappable():
    """A handle to GPU memory, on a machine without one."""

    def rebuild():
        raise RuntimeError("CUDA error: operation not supported\nmore")

    return SharedWeightsHandle({"w": TensorPlace((1,), torch.float32, 0)}, CudaMemoryHandle(rebuild, (), b""))


def test_frozen_weights_that_cannot_be_mapped_are_loaded_anew_and_the_log_says_why_once(caplog):
    with caplog.at_level(logging.INFO):
        weights = map_frozen(unmappable(), must_share=False)
    assert isinstance(weights, NotShared) and not weights.asked_for and tensors_of(weights) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("the frozen weights are loaded a second time: processes cannot share GPU")


def test_a_worker_that_must_share_ends_with_the_reason():
    with pytest.raises(SharingError, match="operation not supported"):
        map_frozen(unmappable(), must_share=True)


def test_a_copy_that_was_asked_for_is_no_warning(caplog):
    with caplog.at_level(logging.WARNING):
        weights = map_frozen(NotShared("runtime.share_frozen is false", asked_for=True), must_share=False)
    assert tensors_of(weights) is None and not caplog.records


def test_what_can_be_mapped_is_mapped_and_where_nothing_is_frozen_nothing_is():
    assert tensors_of(map_frozen(None, must_share=True)) == {}
    with share_tensors({"w": torch.tensor([1.0, 2.0])}) as shared:
        mapped = map_frozen(shared.handle, must_share=True)
        assert isinstance(mapped, SharedWeights)
        shared.tensors()["w"][0] = 5.0
        assert tensors_of(mapped)["w"].tolist() == [5.0, 2.0]
        mapped.close()


@pytest.mark.parametrize(("peak", "told"), [(PeakMemory(10, 20), (10, 20)), (None, (0, 0))])
def test_counts_of_the_server_reach_the_counters(peak, told):
    server: Any = SimpleNamespace(
        version=3, batches=4, decisions=5, busy_seconds=1.5, adopt_seconds=0.25, peak_memory=peak
    )  # fmt: skip
    with CellCounters.create(num_env_workers=1) as counters:
        report(server, counters)
        assert counters.get("inference_adopt_seconds") == 0.25
        assert (counters.get("inference_peak_allocated"), counters.get("inference_peak_reserved")) == told
