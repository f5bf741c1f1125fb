from __future__ import annotations

import multiprocessing

import pytest
import torch

from vla_rl.ipc.shared_weights import SharedWeights, SharedWeightsHandle, share_tensors

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]


def example() -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
        "b.weight": torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
    }


def check_and_answer(handle: SharedWeightsHandle) -> None:
    tensors = SharedWeights.attach(handle).tensors()
    assert tensors["b.weight"].tolist() == [1.5, 100.0, 3.25]  # as the parent changed it after sharing
    tensors["a.weight"][1, 2] = -9.0
    if tensors["a.weight"].is_cuda:
        torch.cuda.synchronize()


def test_shared_tensors_equal_the_originals_and_are_copies():
    originals = example()
    with share_tensors(originals) as shared:
        tensors = shared.tensors()
        assert list(tensors) == list(originals)
        for name, original in originals.items():
            assert tensors[name].dtype == original.dtype
            assert torch.equal(tensors[name], original)
        tensors["a.weight"].zero_()
        assert originals["a.weight"].sum() == 15.0


def test_every_call_views_the_same_storage():
    with share_tensors(example()) as shared:
        shared.tensors()["a.weight"][0, 0] = 42.0
        assert shared.tensors()["a.weight"][0, 0] == 42.0
        assert shared.tensors()["a.weight"].data_ptr() == shared.tensors()["a.weight"].data_ptr()
        assert all(t.data_ptr() % 64 == 0 for t in shared.tensors().values() if t.numel())


@pytest.mark.parametrize("device", DEVICES)
def test_parent_and_spawned_child_write_into_each_others_view(device):
    with share_tensors({name: tensor.to(device) for name, tensor in example().items()}) as shared:
        tensors = shared.tensors()
        tensors["b.weight"][1] = 100.0
        child = multiprocessing.get_context("spawn").Process(target=check_and_answer, args=(shared.handle,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert tensors["a.weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, -9.0]]


def test_a_module_computes_with_weights_that_change_under_it():
    with share_tensors({"weight": torch.eye(2)}) as shared:
        layer = torch.nn.Linear(2, 2, bias=False)
        layer.weight = torch.nn.Parameter(shared.tensors()["weight"], requires_grad=False)
        shared.tensors()["weight"].mul_(3.0)
        assert layer(torch.tensor([1.0, 2.0])).tolist() == [3.0, 6.0]


def test_tensors_on_several_devices_are_refused():
    with pytest.raises(ValueError, match=r"one device, got \['cpu', 'meta'\]"):
        share_tensors({"a": torch.zeros(1), "b": torch.zeros(1, device="meta")})
    with pytest.raises(ValueError, match="got meta"):
        share_tensors({"b": torch.zeros(1, device="meta")})
