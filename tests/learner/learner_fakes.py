"""A small policy, batches without an environment, and a learner around them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from vla_rl.credit import Credit, Gae, Vtrace
from vla_rl.learner.engine import Engine
from vla_rl.learner.learner import Learner
from vla_rl.learner.strategies import StrategyName
from vla_rl.policies.mlp.network import MLPPolicy
from vla_rl.policies.token_policy import TokenOutput
from vla_rl.policies.value_heads import NoCritic
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.optimizer_section import OptimizerSection
from vla_rl.rl.surrogates import KINDS, Surrogate
from vla_rl.types import ActionSpec, PolicyInputs, SegmentBatch

ACTIONS = ActionSpec(chunk_size=2, action_dim=3, num_bins=5)
STATE_DIM = 4
LENGTH = 3  # decisions per segment


class FakePolicy(MLPPolicy):
    """With what the MLP lacks: parameters of its own, one frozen and one trainable."""

    def __init__(self) -> None:
        super().__init__(state_dim=STATE_DIM, action_spec=ACTIONS, hidden_dim=8)
        self.frozen = torch.nn.Parameter(torch.linspace(-1.0, 1.0, ACTIONS.num_bins), requires_grad=False)
        self.scale = torch.nn.Parameter(torch.linspace(0.5, 1.5, ACTIONS.num_bins))

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        output = super().network(inputs)
        return TokenOutput(logits=output.logits + self.frozen * self.scale, values=output.values)


class SmallMemoryPolicy(FakePolicy):
    """Runs out of memory where more than `limit` rows need gradients."""

    def __init__(self, *, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        if torch.is_grad_enabled() and len(inputs.state) > self.limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().network(inputs)


def make_policy(seed: int = 0) -> FakePolicy:
    torch.manual_seed(seed)
    return FakePolicy()


def make_engine(
    policy: torch.nn.Module,
    *,
    strategy: StrategyName = "single",
    zero_stage: int = 2,
    lr: float = 1e-2,
    max_grad_norm: float = 1.0,
    max_skipped_updates: int = 3,
    precision: Literal["fp32", "bf16"] = "fp32",
    compile: Literal["off", "layers"] = "off",
) -> Engine:
    return Engine(
        policy,
        strategy=strategy,
        zero_stage=zero_stage,
        precision=precision,
        device="cpu",
        optimizer=OptimizerSection(
            policy_lr=lr,
            value_lr=3 * lr,
            policy_warmup=2,
            schedule="cosine",
            weight_decay=0.01,
            max_grad_norm=max_grad_norm,
        ),
        total_steps=50,
        max_skipped_updates=max_skipped_updates,
        collective_timeout_s=30.0 if compile == "off" else 300.0,
        compile=compile,
    )


def gae(*, discount: float, gae_lambda: float, **others: Any) -> Gae:
    return Gae(name="gae", discount=discount, gae_lambda=gae_lambda, **{"time_limit": "bootstrap", **others})


def vtrace(*, discount: float, lambda_: float, rho_bar: float, c_bar: float, **others: Any) -> Vtrace:
    arguments = {"lambda": lambda_, "rho_bar": rho_bar, "c_bar": c_bar, "time_limit": "bootstrap", **others}
    return Vtrace(name="vtrace", discount=discount, **arguments)


def make_learner(
    engine: Engine,
    *,
    surrogate: str | Surrogate = "gipo",
    targets: Credit | None = None,
    loss: LossWeights | None = None,
    micro_batch: int = 2,
    accumulation: int = 2,
    temperature: float = 1.0,
    longest_episode: int | None = None,
    reuse_passes: bool = False,
) -> Learner:
    engine.policy.temperature = temperature  # type: ignore[assignment]
    return Learner(
        engine,
        surrogate=KINDS[surrogate](name=surrogate) if isinstance(surrogate, str) else surrogate,
        credit=targets or gae(discount=0.9, gae_lambda=0.5),
        loss=loss or LossWeights(value_coefficient=0.5, entropy_coefficient=0.01),
        batch_size=micro_batch * accumulation,
        num_micro_batches=accumulation,
        old_threshold=10,
        longest_episode=longest_episode,
        reuse_passes=reuse_passes,
    )


def updated(
    batch: SegmentBatch, *, policy: torch.nn.Module | None = None, **settings
) -> tuple[torch.nn.Module, dict[str, float]]:
    """A policy after an update by a learner with these settings, and what that measured."""
    policy = policy or make_policy()
    learner = make_learner(make_engine(policy), **settings)
    return policy, learner.update(batch, policy_version=20)


def make_batch(num_segments: int = 4, *, seed: int = 0) -> SegmentBatch:
    """Segments of 3 decisions; every second one is an episode's end after 2, so it has padding."""
    generator = np.random.default_rng(seed)
    shape = (num_segments, LENGTH)
    mask = np.ones(shape, dtype=np.bool_)
    mask[1::2, 2] = False
    terminated = np.zeros(shape, dtype=np.bool_)
    terminated[1::4, 1] = True
    truncated = np.zeros(shape, dtype=np.bool_)
    truncated[3::4, 1] = True
    executed = np.where(mask, 2, 0).astype(np.int16)
    executed[1::2, 1] = 1  # the last chunk ran one control step of two
    assert ACTIONS.num_bins
    behavior_values = np.zeros((num_segments, LENGTH + 1), dtype=np.float32)
    behavior_values[1::2, 2] = np.nan  # the episode is over, so nobody acted there
    logits = generator.normal(size=(*shape, ACTIONS.num_tokens, ACTIONS.num_bins)).astype(np.float32)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    tokens = generator.integers(0, ACTIONS.num_bins, size=(*shape, ACTIONS.num_tokens)).astype(np.int16)
    return SegmentBatch(
        frames=np.zeros((num_segments, LENGTH + 1, 0, 0, 0, 3), dtype=np.uint8),
        state=generator.normal(size=(num_segments, LENGTH + 1, STATE_DIM)).astype(np.float32),
        task_index=np.zeros(num_segments, dtype=np.int64),
        episode=np.arange(num_segments),
        group=np.zeros(num_segments, dtype=np.int64),
        tokens=tokens,
        behavior_logprobs=np.take_along_axis(logits, tokens[..., None].astype(np.int64), axis=-1)[..., 0],
        behavior_logits=logits,
        behavior_values=behavior_values,
        rewards=np.where(mask, generator.normal(size=shape), 0.0).astype(np.float32),
        executed=executed,
        terminated=terminated,
        truncated=truncated,
        policy_version=np.where(mask, generator.integers(0, 20, size=shape), 0),
        age=np.where(mask, generator.integers(0, 100, size=shape), 0),
        mask=mask,
    )


def group_batch(*, lengths: tuple[int, ...] = (3, 2, 3, 2)) -> SegmentBatch:
    """Two groups of two episodes of these decisions each, all control steps executed, returns 1 3 and 0 5."""
    batch = make_batch(4)
    mask = np.arange(LENGTH) < np.array(lengths)[:, None]
    rewards = np.zeros(mask.shape, dtype=np.float32)
    rewards[:, 0] = [1.0, 3.0, 0.0, 5.0]
    return replace(
        batch,
        episode=np.array([11, 5, 7, 2]),
        group=np.array([9, 9, 4, 4]),
        rewards=rewards,
        mask=mask,
        executed=np.where(mask, 2, 0).astype(np.int16),
        behavior_values=np.full_like(batch.behavior_values, math.nan),
    )


def without_critic(seed: int = 0) -> FakePolicy:
    policy = make_policy(seed)
    policy.value_head = NoCritic()  # type: ignore[assignment]
    return policy


def on_policy(batch: SegmentBatch, policy: MLPPolicy, *, temperature: float = 1.0) -> SegmentBatch:
    """The same batch as if the policy had acted: its own log-probabilities as the behaviour's."""
    state = torch.from_numpy(batch.state[:, :-1]).reshape(-1, STATE_DIM)
    inputs = PolicyInputs(frames=torch.zeros(len(state), 0, 0, 0, 3), state=state, task_index=torch.zeros(len(state)))
    with torch.no_grad():
        log_probs = torch.log_softmax(policy.token_logits(inputs) / temperature, dim=-1).numpy()
    log_probs = log_probs.reshape(batch.behavior_logits.shape)
    taken = np.take_along_axis(log_probs, batch.tokens[..., None].astype(np.int64), axis=-1)[..., 0]
    return replace(batch, behavior_logprobs=taken, behavior_logits=log_probs)


def select(batch: SegmentBatch, segments: slice) -> SegmentBatch:
    """Some of the segments."""
    arrays: dict[str, Any] = {name: getattr(batch, name) for name in SegmentBatch.__dataclass_fields__}
    selected: dict[str, Any] = {name: None if it is None else it[segments] for name, it in arrays.items()}
    return SegmentBatch(**selected)


def weights(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)
