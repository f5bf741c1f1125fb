"""Group advantages and the clipped loss against TorchRL's, an implementation that shares no code with ours.

TorchRL is no dependency: `scripts/test --with-torchrl` installs it into a temporary folder and runs this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import learner_fakes as fakes
import numpy as np
import pytest
import torch

from vla_rl.credit import Group
from vla_rl.rl.groups import group_advantages
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.surrogates import Ppo
from vla_rl.types import PolicyInputs

pytestmark = pytest.mark.slow
WHY = "torchrl is not installed; scripts/test --with-torchrl installs it and runs this"
llm: Any = pytest.importorskip("torchrl.objectives.llm", reason=WHY, exc_type=ImportError)
tensordict: Any = pytest.importorskip("tensordict", reason=WHY)


def episode(group: int, rewards: list[float]) -> Any:
    length = len(rewards)
    done = torch.zeros(length, 1, dtype=torch.bool)
    done[-1] = True
    outcome = tensordict.TensorDict(
        {"reward": torch.tensor(rewards, dtype=torch.float64)[:, None], "done": done}, batch_size=[length]
    )
    return tensordict.TensorDict({"group": torch.full((length,), group), "next": outcome}, batch_size=[length])


def test_advantages_of_groups_are_torchrl_s() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        returns = rng.integers(0, 2, 8).astype(np.float64) + rng.integers(0, 3) * rng.normal(size=8)
        if np.ptp(returns) == 0:
            continue
        transform = llm.MCAdvantage(grpo_size=8, prompt_key="group", trajectory_return="sum")
        lengths, out = rng.integers(1, 5, 8), None
        for score, length in zip(returns, lengths, strict=True):
            out = transform.inv(episode(3, [0.0] * (length - 1) + [float(score)]))
        ends = np.cumsum(lengths) - 1
        theirs = out["advantage"].flatten()[torch.from_numpy(ends)].tolist()
        assert group_advantages(returns, np.zeros(8, dtype=int), eps=0.0) == pytest.approx(theirs, abs=1e-9)


def test_the_choice_among_candidates_is_torchrl_s() -> None:
    rng = np.random.default_rng(1)
    credit = Group(name="group", size=4, oversample="balanced", candidates=7)
    selector = llm.MCAdvantageSelector("balanced")
    for _ in range(50):
        scores = rng.integers(0, 2, 7).astype(np.float64)
        given = tensordict.TensorDict({"return": torch.from_numpy(scores)}, [7])
        theirs = selector.select(given, group_size=4, keep_return_bounds=(0.1, 0.9))
        ours = credit.choose(scores)
        assert (ours is None) == (theirs is None)
        assert ours is None or scores[ours].mean() == scores[theirs].mean()


@pytest.mark.parametrize(("ours", "theirs"), [("token", "token_mean"), ("trajectory", "prompt_mean")])
def test_the_clipped_loss_of_whole_episodes_is_torchrl_s(ours: str, theirs: str) -> None:
    policy, behavior = fakes.make_policy(0), fakes.make_policy(1)
    batch = fakes.make_batch(4)
    batch = replace(batch, episode=np.arange(4), group=np.array([1, 1, 2, 2]))
    batch = fakes.on_policy(batch, behavior)
    inputs = PolicyInputs(
        frames=torch.zeros(12, 0, 0, 0, 3),
        state=torch.from_numpy(batch.state[:, :-1]).reshape(12, -1),
        task_index=torch.zeros(12, dtype=torch.int64),
    )
    tokens = torch.from_numpy(batch.tokens).reshape(12, -1)
    with torch.no_grad():
        logprobs = policy(inputs, tokens).logprobs.reshape(4, -1)
    steps = np.arange(fakes.ACTIONS.num_tokens) // fakes.ACTIONS.action_dim
    mask = torch.from_numpy((steps < batch.executed[..., None]).reshape(4, -1))
    scores = np.where(batch.mask, batch.rewards, 0.0).sum(axis=1)
    advantages = torch.from_numpy(group_advantages(scores, batch.group))[:, None, None].float()

    loss = llm.GRPOLoss(clip_epsilon=(0.2, 0.28), aggregation=theirs)
    log_weight = (logprobs - torch.from_numpy(batch.behavior_logprobs).reshape(4, -1))[..., None]
    assert float((log_weight.abs() > 0.25).float().mean()) > 0.1  # the clipping matters
    objective, _ = loss._compute_policy_objective(log_weight, advantages)
    expected = float(loss._aggregate_loss_value(objective, mask))

    learner = fakes.make_learner(
        fakes.make_engine(policy), surrogate=Ppo(name="ppo", clip_low=0.2, clip_high=0.28),
        targets=Group(name="group", size=2),
        loss=LossWeights.model_validate({"aggregation": ours, "normalize_advantages": False}),
    )  # fmt: skip
    assert learner.update(batch, policy_version=0)["learner/policy_loss"] == pytest.approx(expected, abs=1e-5)
