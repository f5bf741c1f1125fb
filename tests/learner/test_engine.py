"""Scaling, stepping, learning rates and precision, in one process."""

from __future__ import annotations

import math
from collections.abc import Callable

import learner_fakes as fakes
import pytest
import torch

from vla_rl.learner import strategies
from vla_rl.learner.engine import Engine, UpdateResult
from vla_rl.learner.optimizer import learning_rate
from vla_rl.rl.optimizer_section import OptimizerSection
from vla_rl.types import PolicyInputs


def inputs(rows: int = 4) -> PolicyInputs:
    state = torch.linspace(-1.0, 1.0, rows * fakes.STATE_DIM).reshape(rows, fakes.STATE_DIM)
    return PolicyInputs(frames=torch.zeros(rows, 0, 0, 0, 3), state=state, task_index=torch.zeros(rows))


def tokens(rows: int = 4) -> torch.Tensor:
    count = fakes.ACTIONS.num_tokens
    return torch.arange(rows * count).reshape(rows, count) % 5


def descend(engine: Engine, *losses: Callable[[], torch.Tensor]) -> UpdateResult:
    share, kept = engine.accumulate([lambda loss=loss: (loss(), None) for loss in losses])
    assert kept == [None] * len(losses)
    return engine.step(share)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5]),
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_warm_up_rises_by_equal_parts_and_the_schedule_starts_where_it_ends(schedule, expected: list[float]) -> None:
    rates = [learning_rate(step, peak=1.0, warmup=4, total_steps=8, schedule=schedule) for step in range(7)]
    assert rates == pytest.approx(expected)


def test_the_cosine_ends_at_zero_and_stays_there() -> None:
    rates = [learning_rate(step, peak=1.0, warmup=4, total_steps=8, schedule="cosine") for step in (8, 9, 100)]
    assert rates == pytest.approx([0.0, 0.0, 0.0])


@pytest.mark.parametrize(("schedule", "halfway"), [("cosine", 1.05), ("linear", 1.05)])
def test_a_schedule_ends_at_its_fraction_of_the_peak_and_stays_there(schedule, halfway: float) -> None:
    rates = [
        learning_rate(step, peak=2.0, warmup=4, total_steps=8, schedule=schedule, final_fraction=0.05)
        for step in (4, 6, 8, 100)
    ]
    assert rates == pytest.approx([2.0, halfway, 0.1, 0.1])


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    settings = OptimizerSection(policy_warmup=10, value_warmup=9)
    with pytest.raises(ValueError, match=r"found \{'policy_warmup': 10\}, total_steps 10"):
        Engine(
            fakes.make_policy(), strategy="single", zero_stage=2, precision="fp32", device="cpu", optimizer=settings,
            total_steps=10,
        )  # fmt: skip
    assert settings.endless_warmups(11) == {}
    assert OptimizerSection(policy_warmup=99, schedule="constant").endless_warmups(10) == {}
    after_the_critic = OptimizerSection(policy_warmup=1, value_warmup=1, critic_only_steps=9)
    assert after_the_critic.endless_warmups(10) == {"policy_warmup": 1}


def test_only_the_value_head_moves_while_only_the_critic_is_trained() -> None:
    settings = OptimizerSection(policy_lr=1e-2, value_lr=1e-2, policy_warmup=2, weight_decay=0.1, critic_only_steps=2)
    policy = fakes.make_policy()
    engine = Engine(
        policy, strategy="single", zero_stage=2, precision="fp32", device="cpu", optimizer=settings, total_steps=10
    )

    def loss() -> torch.Tensor:
        found = engine.forward(inputs(), tokens())
        assert found.logprobs is not None
        return found.logprobs.square().mean() + found.values.square().mean()

    start = fakes.weights(policy)
    rates = [descend(engine, loss).learning_rates["policy"] for _ in range(2)]
    critic_only = fakes.weights(policy)
    rates += [descend(engine, loss).learning_rates["policy"] for _ in range(2)]
    assert rates == pytest.approx([0.0, 0.0, 0.005, 0.01])  # the policy's own warm-up follows
    moved = {name for name in start if not torch.equal(start[name], critic_only[name])}
    assert moved == {name for name in start if policy.is_value_parameter(name)}
    moved_later = {name for name in start if not torch.equal(fakes.weights(policy)[name], critic_only[name])}
    assert moved_later == set(start) - {"frozen"}


def test_policy_and_value_have_learning_rates_of_their_own() -> None:
    engine = fakes.make_engine(fakes.make_policy(), lr=1e-2)  # warm-up of the policy: 2 updates; value: none

    def loss() -> torch.Tensor:
        found = engine.forward(inputs(), tokens())
        assert found.logprobs is not None
        return found.logprobs.square().mean() + found.values.square().mean()

    before = fakes.weights(engine.policy)
    result = descend(engine, loss)
    after = fakes.weights(engine.policy)
    assert result.learning_rates == {"policy": 0.005, "value": 0.03}
    # Adam's first step moves every element by the learning rate, where weight decay adds nothing (zero elements).
    for name, rate in (("policy_head.1.bias", 0.005), ("value_head.1.bias", 0.03)):
        moved = (after[name] - before[name] * (1 - rate * 0.01)).abs()
        assert float(moved.max()) == pytest.approx(rate, rel=1e-3)


def test_the_reported_gradient_norm_is_the_one_before_clipping() -> None:
    policy = fakes.make_policy()
    engine = fakes.make_engine(policy, max_grad_norm=1e-3)
    result = descend(engine, lambda: 3.0 * policy.scale.sum())
    assert result.grad_norm == pytest.approx(3.0 * math.sqrt(5))


def test_micro_batches_add_up_and_step_once() -> None:
    first, second = fakes.make_policy(), fakes.make_policy()
    engine_first, engine_second = fakes.make_engine(first), fakes.make_engine(second)
    descend(engine_first, lambda: first.scale.sum(), lambda: first.scale.square().sum())
    descend(engine_second, lambda: second.scale.sum() + second.scale.square().sum())
    assert engine_first.optimizer_steps == engine_second.optimizer_steps == 1
    steps = {int(entry["step"]) for entry in engine_first.optimizer_state().values()}
    assert steps == {1}
    assert fakes.largest_difference(fakes.weights(first), fakes.weights(second)) < 1e-7


def test_an_infinite_loss_with_a_finite_gradient_is_skipped_too() -> None:
    policy = fakes.make_policy()
    engine = fakes.make_engine(policy)
    result = descend(engine, lambda: policy.scale.sum() + math.inf)
    assert not result.applied
    assert engine.optimizer_steps == 0
    assert engine.optimizer_state() == {}


def test_bf16_keeps_trainable_parameters_in_float32_and_frozen_ones_as_they_are() -> None:
    policy = fakes.make_policy()
    policy.frozen.data = policy.frozen.data.bfloat16()
    policy.scale.data = policy.scale.data.bfloat16()
    frozen_memory = policy.frozen.data_ptr()
    engine = fakes.make_engine(policy, precision="bf16")
    exact, found = policy(inputs(), tokens()), engine.forward(inputs(), tokens())
    assert {tensor.dtype for tensor in engine.trainable_state().values()} == {torch.float32}
    assert policy.frozen.dtype == torch.bfloat16
    assert policy.frozen.data_ptr() == frozen_memory
    assert found.logprobs is not None
    assert found.logprobs.dtype == found.values.dtype == torch.float32
    difference = float((found.logprobs - exact.logprobs).detach().abs().max())
    assert 0.0 < difference < 0.05  # arithmetic of 8 bits did take place


def test_published_tensors_are_the_trainable_ones_without_a_copy() -> None:
    policy = fakes.make_policy()
    state = fakes.make_engine(policy).trainable_state()
    assert "frozen" not in state
    assert state["scale"].data_ptr() == policy.scale.data_ptr()
    assert not state["scale"].requires_grad


def test_a_policy_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        fakes.make_engine(fakes.make_policy().requires_grad_(False))


def test_strategy_single_in_a_launched_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="strategy 'single' in one of 2 launched ranks"):
        fakes.make_engine(fakes.make_policy())


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="needs the package deepspeed, which is not installed"):
        fakes.make_engine(fakes.make_policy(), strategy="deepspeed")


def test_one_rank_has_collectives_that_change_nothing() -> None:
    ranks: Engine = fakes.make_engine(fakes.make_policy())
    collectives = ranks.collectives
    assert collectives.sum_over_ranks({"a": 2.0}) == {"a": 2.0}
    assert collectives.any_over_ranks(True)
    assert not collectives.any_over_ranks(False)
    assert collectives.gather_over_ranks(torch.arange(3)).tolist() == [0, 1, 2]
    collectives.barrier()


def test_the_wrapped_module_evaluates_what_was_asked_for_and_only_that() -> None:
    policy = fakes.make_policy()
    engine, behavior = fakes.make_engine(policy), torch.log_softmax(torch.zeros(3, 6, 5), dim=-1)
    with torch.no_grad():
        for asked in ({}, {"with_entropy": True}, {"behavior": behavior}, {"behavior": behavior, "with_entropy": True}):
            found, expected = (each(inputs(), tokens(3), **asked) for each in (engine.forward, policy))
            for name in ("values", "logprobs", "entropy", "kl"):
                one, other = getattr(found, name), getattr(expected, name)
                assert (one is None and other is None) or torch.equal(one, other), (name, asked)
        assert engine.forward(inputs()).logprobs is None
