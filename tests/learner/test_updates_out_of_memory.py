"""Updates on a device without enough memory: smaller passes, and advice where none is small enough."""

from __future__ import annotations

import logging
import weakref

import learner_fakes as fakes
import pytest
import torch

from vla_rl.policies.token_policy import TokenOutput
from vla_rl.types import PolicyInputs


def test_out_of_memory_cuts_the_batch_smaller_and_the_update_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    batch = fakes.make_batch(8)
    torch.manual_seed(0)
    small = fakes.SmallMemoryPolicy(limit=3)
    engine = fakes.make_engine(small)
    learner = fakes.make_learner(engine, micro_batch=8, accumulation=1)
    with caplog.at_level(logging.WARNING):
        metrics = [learner.update(batch, policy_version=20) for _ in range(2)]
    # 20 decisions: 20, 10, 5 and at last 3 at a time; the second update starts where the first one ended.
    assert [record.args for record in caplog.records if "out of memory" in record.message] == [(2,), (4,), (8,)]
    plain = fakes.make_policy()
    reference = fakes.make_learner(fakes.make_engine(plain), micro_batch=8, accumulation=1)
    expected = [reference.update(batch, policy_version=20) for _ in range(2)]
    assert fakes.largest_difference(fakes.weights(plain), fakes.weights(small)) < 1e-6
    assert [point.pop("learner/micro_batches") for point in metrics] == [8.0, 8.0]
    assert [point.pop("learner/micro_batches") for point in expected] == [1.0, 1.0]
    assert metrics[1] == pytest.approx(expected[1], rel=1e-4, abs=1e-6)
    assert engine.optimizer_steps == 2


class HoldingPolicy(fakes.SmallMemoryPolicy):
    """Holds tensors during a pass, and knows how often it was told to release those of one that failed."""

    forgotten = 0

    def forget_pass(self) -> None:
        self.forgotten += 1


def test_modules_release_what_a_pass_that_ran_out_of_memory_left_in_them() -> None:
    policy = HoldingPolicy(limit=3)
    fakes.updated(fakes.make_batch(8), policy=policy, micro_batch=8, accumulation=1)
    assert policy.forgotten == 3  # at 20, 10 and 5 decisions


class NoWorkspacePolicy(fakes.FakePolicy):
    """A CUDA library finds no room in the first forward pass with gradients."""

    passes = 0

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        self.passes += torch.is_grad_enabled()
        if torch.is_grad_enabled() and self.passes == 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return super().network(inputs)


def test_a_library_without_room_for_its_workspace_counts_as_out_of_memory() -> None:
    _, metrics = fakes.updated(fakes.make_batch(), policy=NoWorkspacePolicy(), micro_batch=4, accumulation=1)
    assert metrics["learner/micro_batches"] == 2.0


class _NoRoomForGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: torch.Tensor) -> torch.Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        if len(gradient) > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return gradient


class SmallBackwardMemoryPolicy(fakes.FakePolicy):
    """Runs out of memory in the backward pass of more than 8 rows."""

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        output = super().network(inputs)
        return TokenOutput(logits=_NoRoomForGradients.apply(output.logits), values=output.values)


def test_out_of_memory_in_the_backward_pass_of_the_only_pass_begins_again_with_smaller_ones() -> None:
    batch = fakes.make_batch()  # 10 decisions
    torch.manual_seed(0)
    policy, metrics = fakes.updated(batch, policy=SmallBackwardMemoryPolicy(), micro_batch=4, accumulation=1)
    reference, _ = fakes.updated(batch, micro_batch=4, accumulation=1)
    assert metrics["learner/micro_batches"] == 2.0
    assert fakes.largest_difference(fakes.weights(reference), fakes.weights(policy)) < 1e-6


class RememberingPolicy(fakes.FakePolicy):
    """Knows how many outputs of its earlier passes are still held by somebody when a pass begins."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[weakref.ref[torch.Tensor]] = []
        self.held: list[int] = []

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        self.held.append(sum(output() is not None for output in self.outputs))
        output = super().network(inputs)
        self.outputs.append(weakref.ref(output.logits))
        return output


def test_a_rank_that_had_room_holds_nothing_when_all_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RememberingPolicy()
    engine = fakes.make_engine(policy)
    whole_sum, calls = engine.collectives.sum_over_ranks, []

    def other_rank_is_short_at_first(local: dict[str, float]) -> dict[str, float]:
        if "short" not in local:
            return whole_sum(local)
        calls.append(local)
        return {"short": 1.0, "hopeless": 0.0} if len(calls) == 1 else whole_sum(local)

    monkeypatch.setattr(engine.collectives, "sum_over_ranks", other_rank_is_short_at_first)
    fakes.make_learner(engine, micro_batch=4, accumulation=1).update(fakes.make_batch(), policy_version=20)
    assert policy.held[1] == 0
    assert len(policy.held) == 1 + 2 + 2  # one pass, then two micro-batches without and two with gradients


class OnceOutOfMemoryPolicy(fakes.FakePolicy):
    """Runs out of memory in the second forward pass with gradients, and never again."""

    passes = 0

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        self.passes += torch.is_grad_enabled()
        if torch.is_grad_enabled() and self.passes == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().network(inputs)


def test_gradients_from_before_running_out_of_memory_are_forgotten() -> None:
    torch.manual_seed(0)
    policy, _ = fakes.updated(fakes.make_batch(), policy=OnceOutOfMemoryPolicy())
    reference, _ = fakes.updated(fakes.make_batch())
    assert fakes.largest_difference(fakes.weights(reference), fakes.weights(policy)) < 1e-6


def test_out_of_memory_with_one_decision_at_a_time_ends_the_run_with_advice() -> None:
    with pytest.raises(
        torch.cuda.OutOfMemoryError, match=r"CUDA out of memory\. .*policy\.gradient_checkpointing=true"
    ):
        fakes.updated(fakes.make_batch(), policy=fakes.SmallMemoryPolicy(limit=0))


def test_out_of_memory_under_deepspeed_ends_the_run_with_advice() -> None:
    """Its ranks meet inside the backward pass of a micro-batch. Not run under it: the engine's flag is what counts."""
    engine = fakes.make_engine(fakes.SmallMemoryPolicy(limit=3))
    engine.can_retry = False
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        fakes.make_learner(engine, micro_batch=4, accumulation=1).update(fakes.make_batch(), policy_version=20)
    assert any("lower learner.micro_batch" in note and "strategy=ddp" in note for note in caught.value.__notes__)
