"""Kinds of importance ratio, and that a new one is an entry of their table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import get_args

import learner_fakes as fakes
import numpy as np
import pytest
import torch
from torch import Tensor

from vla_rl.credit import Group
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.ratios import RATIOS, Ratio, RatioName

NAN = math.nan


def test_every_name_of_a_recipe_has_an_entry() -> None:
    assert set(get_args(RatioName)) == set(RATIOS)


@pytest.mark.parametrize(
    ("name", "logs", "valid"),
    [
        ("token", [[1.0, 2.0, 4.0, 8.0], [16.0, 32.0, 0.0, 0.0]], [[True] * 4, [True, True, False, False]]),
        ("step", [[3.0, 12.0], [48.0, 0.0]], [[True, True], [True, False]]),
        ("joint", [[15.0], [48.0]], [[True], [True]]),
    ],
)
def test_ratios_by_hand(name: RatioName, logs: list[list[float]], valid: list[list[bool]]) -> None:
    """Two decisions of two control steps with two tokens each; the second has executed one step."""
    ratio = RATIOS[name](2, 4)
    of_tokens = torch.tensor([[1.0, 2.0, 4.0, 8.0], [16.0, 32.0, NAN, NAN]], requires_grad=True)
    run = torch.tensor([[True] * 4, [True, True, False, False]])
    found = ratio.of_tokens(of_tokens, run)
    of_valid = torch.tensor(valid)
    assert ratio.valid(run).tolist() == valid
    assert found.where(of_valid, 0.0).tolist() == logs
    assert ratio.num_valid(np.array([4, 2])) == sum(map(sum, valid))
    found.where(of_valid, 0.0).sum().backward()
    assert of_tokens.grad is not None
    assert of_tokens.grad.tolist() == run.float().tolist()


@dataclass(frozen=True)
class Mean(Ratio):
    """Geometric mean of the ratios of executed tokens, as GSPO takes it (arXiv 2507.18071)."""

    def of_tokens(self, logs: Tensor, run: Tensor) -> Tensor:
        return super().of_tokens(logs, run) / self.shared(run).sum(dim=2).clamp(min=1)


def test_a_new_kind_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios e^0.5 of whole decisions, the mean of 0.9 and 0.1 nat: advantages -1 1 -2.5 2.5, 3 2 3 2 decisions."""
    monkeypatch.setitem(RATIOS, "mean", lambda _, num_tokens: Mean(num_tokens))  # type: ignore[misc]
    loss = LossWeights(normalize_advantages=False).model_copy(update={"ratio": "mean"})
    policy = fakes.without_critic()
    batch = fakes.on_policy(fakes.group_batch(), policy)
    log_ratio = np.where(np.arange(fakes.ACTIONS.num_tokens) % 2, 0.1, 0.9).astype(np.float32)
    batch = replace(batch, behavior_logprobs=batch.behavior_logprobs - log_ratio)
    for parts in (1, 4):
        learner = fakes.make_learner(
            fakes.make_engine(fakes.without_critic()), surrogate="no_clip", loss=loss, micro_batch=4 // parts,
            accumulation=parts, targets=Group(name="group", size=2, baseline="mean"),
        )  # fmt: skip
        metrics = learner.update(batch, policy_version=20)
        assert metrics["learner/policy_loss"] == pytest.approx(0.35 * math.exp(0.5), abs=1e-5)
        assert metrics["ratio/abs_log_p95"] == pytest.approx(0.9, rel=1e-4)
        assert metrics["learner/clip_fraction"] == 1.0
