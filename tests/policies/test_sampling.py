import math

import pytest
import torch

from vla_rl.policies.sampling import sample_tokens, token_logprobs

LOGITS = torch.tensor([[0.0, math.log(3.0)], [math.log(9.0), 0.0]])


def test_log_probabilities_are_of_the_tempered_distribution():
    # At temperature 1: (1/4, 3/4). At temperature 2 the odds are the square root: 9 to 1 becomes 3 to 1.
    assert token_logprobs(LOGITS, torch.tensor([1, 0]), 1.0).exp().tolist() == pytest.approx([0.75, 0.9])
    assert token_logprobs(LOGITS, torch.tensor([1, 0]), 2.0)[1].exp().item() == pytest.approx(0.75)


def test_sampling_returns_the_log_probabilities_that_token_logprobs_gives():
    logits = torch.randn(5, 56, 256, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = sample_tokens(logits, 1.6, torch.Generator().manual_seed(1))
    assert tokens.shape == (5, 56) and tokens.dtype == torch.int64 and logprobs.dtype == torch.float32
    assert torch.equal(logprobs, token_logprobs(logits, tokens, 1.6))


def test_the_same_generator_draws_the_same_tokens():
    logits = torch.zeros(2, 3, 256)
    first, _ = sample_tokens(logits, 1.0, torch.Generator().manual_seed(7))
    again, _ = sample_tokens(logits, 1.0, torch.Generator().manual_seed(7))
    other, _ = sample_tokens(logits, 1.0, torch.Generator().manual_seed(8))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_frequencies_of_samples_approach_the_tempered_probabilities():
    tokens, _ = sample_tokens(LOGITS[:1].expand(20_000, 2), 0.5, torch.Generator().manual_seed(0))
    assert tokens.float().mean().item() == pytest.approx(0.9, abs=0.01)  # odds 3 to 1 become 9 to 1


def test_greedy_takes_the_argmax_and_reports_tempered_log_probabilities():
    tokens, logprobs = sample_tokens(LOGITS, 2.0, greedy=True)
    assert tokens.tolist() == [1, 0]
    assert torch.equal(logprobs, token_logprobs(LOGITS, tokens, 2.0))


def test_reduced_precision_logits_are_normalised_in_float32():
    logits = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    logprobs = torch.stack([token_logprobs(logits, torch.full((4,), token), 1.0) for token in range(256)])
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.exp().sum(0), torch.ones(4), atol=1e-5, rtol=0)


def test_the_gradient_of_a_log_probability_is_one_hot_minus_probabilities_over_temperature():
    logits = LOGITS[:1].clone().requires_grad_()
    token_logprobs(logits, torch.tensor([1]), 1.0).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.25, 0.25])


def test_a_temperature_of_zero_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="greedy=True"):
        sample_tokens(LOGITS, 0.0)
