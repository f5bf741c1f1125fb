"""How gradients meet: in few large buffers, whatever the number of tensors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from vla_rl.learner import strategies
from vla_rl.learner.stepping import TorchStrategy, clip_by_norm, copy_from_flat, in_buckets


def test_buckets_keep_the_order_and_hold_one_dtype_and_no_more_than_their_size() -> None:
    sizes = [(3, torch.float32), (2, torch.float32), (9, torch.float32), (1, torch.float32), (4, torch.bfloat16)]
    tensors = [torch.zeros(size, dtype=dtype) for size, dtype in sizes]
    buckets = in_buckets(tensors, max_bytes=20)
    assert [[len(tensor) for tensor in bucket] for bucket in buckets] == [[3, 2], [9], [1], [4]]
    assert [tensor for bucket in buckets for tensor in bucket] == tensors
    assert in_buckets([]) == []


def test_parts_of_a_flat_buffer_go_back_to_their_tensors() -> None:
    tensors = [torch.zeros(2, 3), torch.zeros(1), torch.zeros(2)]
    copy_from_flat(tensors, torch.arange(9.0))
    assert [tensor.tolist() for tensor in tensors] == [[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [6.0], [7.0, 8.0]]


def test_gradients_are_shortened_to_the_norm_and_short_ones_stay_as_they_are() -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]  # together of length 5
    assert clip_by_norm(gradients, 10.0) == 5.0
    assert clip_by_norm(gradients, 5.1) == 5.0
    assert [each.tolist() for each in gradients] == [[3.0, 0.0], [[4.0]]]
    assert clip_by_norm(gradients, 2.5) == 5.0
    assert [each.flatten().tolist() for each in gradients] == [pytest.approx([1.5, 0.0]), pytest.approx([2.0])]
    assert clip_by_norm([], 1.0) == 0.0


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(bad: float) -> None:
    assert not math.isfinite(clip_by_norm([torch.tensor([1.0]), torch.tensor([bad])], 1.0))


@pytest.mark.parametrize("max_norm", [0.01, 0.3, 1e9])
def test_clipping_has_the_bits_of_torch(max_norm: float) -> None:
    module = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    ours = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    assert clip_by_norm(ours, max_norm) == float(nn.utils.clip_grad_norm_(module.parameters(), max_norm))
    for parameter, gradient in zip(module.parameters(), ours, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)


def test_hundreds_of_gradients_are_averaged_in_one_transfer_and_one_that_is_missing_counts_as_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other rank's gradients are 3 everywhere; clipping is out of the way."""
    module = nn.ModuleList([nn.Linear(3, 2) for _ in range(200)])
    begun = copy.deepcopy(module)
    transfers: list[int] = []

    class Done:
        def wait(self) -> None:
            pass

    def add_other_rank(flat: torch.Tensor, *, async_op: bool) -> Done:
        assert async_op
        transfers.append(flat.numel())
        flat.add_(3.0)
        return Done()

    monkeypatch.setattr(dist, "broadcast", lambda flat, *, src: None)
    monkeypatch.setattr(dist, "all_reduce", add_other_rank)
    strategy = TorchStrategy(module, torch.optim.SGD(module.parameters(), lr=1.0), num_ranks=2)
    for linear in module:
        linear.weight.grad = torch.ones_like(linear.weight)  # type: ignore[arg-type]
    strategy.step(max_grad_norm=1e9)
    assert transfers == [200 * 8]
    for before, after in zip(begun, module, strict=True):
        torch.testing.assert_close(after.weight, before.weight - 2.0)  # (1 + 3) / 2
        torch.testing.assert_close(after.bias, before.bias - 1.5)  # (0 + 3) / 2


@pytest.mark.parametrize(("trainable", "elements"), [(6, 6), (7, 8), (499_999_999, 500_000_000), (10**9, 500_000_000)])
def test_a_bucket_of_deepspeed_holds_all_gradients_if_they_are_few_and_is_even(trainable: int, elements: int) -> None:
    """DeepSpeed refuses an odd number, which the toy's perceptron has."""
    assert strategies._bucket(trainable) == elements
