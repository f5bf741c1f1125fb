"""The loss of the tokens and what is measured of it, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vla_rl.sft.token_objective import Measured, soft_labels, token_terms


def test_a_soft_label_is_a_normal_density_over_the_bins_and_sigma_0_is_one_bin() -> None:
    near, far = math.exp(-1 / 8), math.exp(-4 / 8)  # one and two bins away, sigma 2
    assert soft_labels(4, 2.0)[1].tolist() == pytest.approx([w / (1 + 2 * near + far) for w in (near, 1, near, far)])
    assert torch.equal(soft_labels(5, 0.0), torch.eye(5))


def test_the_cross_entropy_is_that_of_the_softened_label() -> None:
    logits = torch.tensor([[[0.0, math.log(2.0), math.log(5.0)]]])  # probabilities 1/8, 2/8, 5/8
    tokens = torch.tensor([[1]])
    terms = token_terms(logits, tokens, torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]]))
    expected = -(0.25 * math.log(1 / 8) + 0.5 * math.log(2 / 8) + 0.25 * math.log(5 / 8))
    assert float(terms.loss) == pytest.approx(expected)
    assert float(terms.cross_entropy) == pytest.approx(math.log(4.0))
    assert (float(terms.correct), int(terms.likeliest)) == (0.0, 2)


def test_the_gradient_pulls_the_prediction_towards_the_softened_label() -> None:
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    labels = soft_labels(4, 2.0)
    token_terms(logits, torch.tensor([[1]]), labels).loss.sum().backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad[0, 0], 0.25 - labels[1])  # softmax minus label


def measured(correct: float, error: float, *, samples: int = 1) -> Measured:
    terms = token_terms(torch.zeros(samples, 14, 4), torch.zeros(samples, 14, dtype=torch.int64), soft_labels(4, 0.0))
    made = Measured.of(terms, np.full((samples, 2, 7), error), value_error=3.0)
    made.correct[0] = correct
    return made


def test_means_are_over_tokens_of_each_component_and_over_all_micro_batches() -> None:
    total = Measured.nothing()
    total += measured(2.0, 0.5)
    total += measured(1.0, 0.1, samples=3)
    found = Measured.from_flat(total.flat()).metrics("supervised", with_value=True)
    assert found["supervised/accuracy_x"] == pytest.approx(3 / 8)  # 4 samples of 2 control steps
    for name in ("l1", "l1_gripper"):
        assert found[f"supervised/{name}"] == pytest.approx((2 * 0.5 + 6 * 0.1) / 8)
    assert found["supervised/cross_entropy"] == pytest.approx(math.log(4.0))
    assert found["supervised/value_loss"] == pytest.approx(6 / 4)
    assert Measured.nothing().metrics("supervised", with_value=True) == {}
