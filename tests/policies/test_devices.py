"""A process's own GPU. There is none here: what would be told to CUDA is caught at the one call that does it."""

import pytest
import torch

from vla_rl.policies.devices import peak_memory, settle_arithmetic, use_device


@pytest.fixture
def current(monkeypatch):
    """Devices that became the current one, in turn."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.fixture
def arithmetic():
    """torch's switches, as they are before the test and after it."""
    backends = torch.backends
    before = backends.cuda.cudnn_sdp_enabled(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    backends.cuda.enable_cudnn_sdp(True)
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = True
    yield lambda: (backends.cuda.cudnn_sdp_enabled(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
    backends.cuda.enable_cudnn_sdp(before[0])
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before[1:]


def test_a_gpu_with_a_number_becomes_the_current_one(current, arithmetic):
    assert use_device("cuda:3") == torch.device("cuda", 3)
    assert current == [torch.device("cuda", 3)]
    assert arithmetic() == (False, False, False)


def test_a_gpu_without_a_number_is_the_current_one_already(current, arithmetic):
    use_device("cuda")
    assert current == []
    assert arithmetic() == (False, False, False)


def test_a_cpu_changes_nothing(current, arithmetic):
    assert use_device("cpu") == torch.device("cpu")
    assert current == [] and arithmetic() == (True, True, True)
    assert peak_memory("cpu") is None


def test_cudnns_attention_and_tensorfloat_are_off_and_the_other_kernels_stay(arithmetic):
    settle_arithmetic()
    assert arithmetic() == (False, False, False)
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_peaks_are_those_of_the_asked_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {torch.device("cuda:1"): 5}.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", {torch.device("cuda:1"): 7}.__getitem__)
    peak = peak_memory("cuda:1")
    assert peak is not None and (peak.allocated, peak.reserved) == (5, 7)
