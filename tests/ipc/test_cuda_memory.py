"""GPU memory shared with other processes. There is no GPU here: what torch would do is caught at its own functions."""

import pickle

import pytest
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from vla_rl.ipc import cuda_memory
from vla_rl.ipc.cuda_memory import CudaMemoryHandle, ExportedMemory, SharingError, sample_of
from vla_rl.ipc.shared_arrays import ALIGNMENT
from vla_rl.ipc.shared_weights import SharedWeights, SharedWeightsHandle, TensorPlace

FILE, OFFSET = b"/torch_17_42_0", 3


@pytest.fixture
def cuda(monkeypatch):
    """What torch was asked to do: memory sent (once per entry) and counters released."""
    did = []

    def reduce_tensor(flat):
        did.append("sent")
        return rebuild_cuda_tensor, (
            torch.Tensor, flat.size(), flat.stride(), 0, torch.storage.TypedStorage, flat.dtype, 0, b"handle",
            flat.numel(), 0, False, FILE, OFFSET, b"event", True,
        )  # fmt: skip

    monkeypatch.setattr(cuda_memory, "reduce_tensor", reduce_tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: did.append("waited"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: did.append("collected"))
    monkeypatch.setattr(
        torch.UntypedStorage, "_release_ipc_counter_cuda", lambda *counter: did.append(counter), raising=True
    )
    return did


def test_memory_is_sent_once_after_all_writing_however_many_processes_are_given_the_handle(cuda):
    exported = ExportedMemory(torch.arange(100, dtype=torch.uint8))
    for _ in range(3):
        assert pickle.loads(pickle.dumps(exported.handle)) == exported.handle
    assert cuda == ["waited", "sent"]


def test_the_owner_counts_its_one_sending_down_once_by_torchs_own_counter(cuda):
    exported = ExportedMemory(torch.arange(100, dtype=torch.uint8))
    for _ in range(2):
        exported.release()
    assert cuda[2:] == [(FILE, OFFSET), "collected"]


def weights():
    """As `share_tensors` makes it on a GPU: flat bytes, here on the CPU."""
    return SharedWeights({"w": TensorPlace((3,), torch.float32, 0)}, torch.zeros(ALIGNMENT, dtype=torch.uint8))


def test_weights_are_exported_when_a_handle_is_asked_for_and_given_back_by_the_owner_alone(cuda):
    with weights() as shared:
        assert cuda == []
        first, second = shared.handle, shared.handle
        assert first == second and cuda == ["waited", "sent"]
        tensor = shared.tensors()["w"]
        attached = SharedWeights(first.places, torch.zeros(ALIGNMENT, dtype=torch.uint8))
        attached.close()
        assert cuda == ["waited", "sent"]
    assert cuda[2:] == [(FILE, OFFSET), "collected"]
    assert tensor.tolist() == [0.0, 0.0, 0.0]  # the owner's own tensors outlive the sharing


def test_weights_that_nobody_asked_a_handle_of_have_nothing_to_give_back(cuda):
    with weights():
        pass
    assert cuda == []


def handle_of(flat, rebuild):
    return CudaMemoryHandle(rebuild, (), sample_of(flat))


def test_attached_weights_are_views_of_what_was_mapped():
    flat = torch.arange(64, dtype=torch.uint8)
    handle = SharedWeightsHandle({"w": TensorPlace((2, 4), torch.uint8, 8)}, handle_of(flat, lambda: flat))
    tensors = SharedWeights.attach(handle).tensors()
    assert tensors["w"].tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert tensors["w"].data_ptr() == flat.data_ptr() + 8


def failing(error):
    def rebuild():
        raise error

    return rebuild


def test_memory_that_holds_something_else_is_refused():
    flat = torch.arange(64, dtype=torch.uint8)
    with pytest.raises(SharingError, match="does not hold what the other process put there"):
        handle_of(flat, lambda: flat.flip(0)).open()


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ("", "WSL and in some containers"),
        ("backend:native, expandable_segments:True", "unset it in PYTORCH_CUDA"),
    ],
)
def test_a_process_that_cannot_map_says_why_in_one_line_and_what_helps(monkeypatch, settings, remedy):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", settings)
    error = RuntimeError("pidfd_getfd: Operation not permitted\nException raised from fromShared at ...")
    with pytest.raises(SharingError, match=remedy) as caught:
        handle_of(torch.zeros(1, dtype=torch.uint8), failing(error)).open()
    assert "here: pidfd_getfd: Operation not permitted. " in str(caught.value)
    assert "runtime.share_frozen=false" in str(caught.value) and "\n" not in str(caught.value)


def test_an_owner_whose_device_cannot_share_says_the_same(cuda, monkeypatch):
    monkeypatch.setattr(
        cuda_memory, "reduce_tensor", lambda flat: failing(RuntimeError("CUDA error: operation not supported"))()
    )
    with pytest.raises(SharingError, match="here: CUDA error: operation not supported"):
        ExportedMemory(torch.zeros(4, dtype=torch.uint8))


def test_a_full_device_is_not_taken_for_one_that_cannot_share():
    full = failing(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        handle_of(torch.zeros(1, dtype=torch.uint8), full).open()


def test_samples_are_spread_over_all_of_the_memory():
    assert sample_of(torch.arange(128, dtype=torch.uint8)) == bytes(range(0, 128, 2))
    assert sample_of(torch.tensor([7, 8], dtype=torch.uint8)) == b"\x07\x08"
    assert sample_of(torch.empty(0, dtype=torch.uint8)) == b""
