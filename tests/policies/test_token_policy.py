"""A policy's density: what it draws, at which temperature, and that evaluating agrees with acting."""

from __future__ import annotations

import math

import pytest
import torch

from vla_rl.policies.kind import NonFiniteOutputError, PolicyContext
from vla_rl.policies.mlp.network import build_mlp
from vla_rl.policies.mlp.section import MLPSection
from vla_rl.policies.token_policy import TokenOutput
from vla_rl.types import PolicyInputs, StateSpace

ROWS = 3


def make(num_bins: int | None = 2, temperature: float = 1.0):
    family = {"distribution": "gaussian"} if num_bins is None else {"num_bins": num_bins}
    section = MLPSection.model_validate({"name": "mlp", "hidden_dim": 8, **family})
    states = StateSpace(state_dim=4, action_dim=2, chunk_size=1)
    context = PolicyContext(seed=0, suite="toy", tasks=("reach",), states=states, temperature=temperature)
    return build_mlp(section, context, device="cpu")


def inputs() -> PolicyInputs:
    state = torch.linspace(-1.0, 1.0, ROWS * 4).reshape(ROWS, 4)
    return PolicyInputs(torch.zeros(ROWS, 0, 0, 0, 3), state, torch.zeros(ROWS, dtype=torch.int64))


def odds(_: PolicyInputs) -> TokenOutput:
    """Two bins with odds of 9 to 1, in every place."""
    logits = torch.tensor([math.log(9.0), 0.0]).expand(ROWS, 2, 2)
    return TokenOutput(logits=logits, values=torch.ones(ROWS))


def test_the_temperature_a_policy_is_built_with_is_that_of_its_density() -> None:
    """Odds of 9 to 1 are 3 to 1 at temperature 2, the square root."""
    for temperature, probability in ((1.0, 0.9), (2.0, 0.75)):
        policy = make(temperature=temperature)
        acted = policy.act(inputs(), greedy=True, with_behavior=True, network=odds)
        assert acted.tokens.tolist() == [[0, 0]] * ROWS
        assert acted.logprobs.exp().flatten().tolist() == pytest.approx([probability] * 2 * ROWS)
        assert acted.behavior is not None
        assert acted.behavior[0, 0].exp().tolist() == pytest.approx([probability, 1.0 - probability])
        policy.network = odds
        evaluated = policy(inputs(), torch.ones(ROWS, 2, dtype=torch.int64), with_entropy=True)
        assert evaluated.logprobs.exp().flatten().tolist() == pytest.approx([1.0 - probability] * 2 * ROWS)
        entropy = -probability * math.log(probability) - (1.0 - probability) * math.log(1.0 - probability)
        assert evaluated.entropy is not None
        assert evaluated.entropy.flatten().tolist() == pytest.approx([entropy] * 2 * ROWS)


@pytest.mark.parametrize("num_bins", [5, None])
def test_evaluating_agrees_with_acting_by_the_same_weights(num_bins: int | None) -> None:
    policy = make(num_bins, temperature=1.6)
    acted = policy.act(inputs(), generator=torch.Generator().manual_seed(0), with_behavior=True)
    evaluated = policy(inputs(), acted.tokens, behavior=acted.behavior)
    torch.testing.assert_close(evaluated.logprobs, acted.logprobs)
    torch.testing.assert_close(evaluated.values, acted.values)
    assert evaluated.kl is not None and float(evaluated.kl.abs().max()) < 1e-6
    assert evaluated.entropy is None
    assert policy.act(inputs()).behavior is None


def test_what_is_drawn_follows_from_the_generator() -> None:
    policy = make(64)
    drawn = [policy.act(inputs(), generator=torch.Generator().manual_seed(seed)).tokens for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_nothing_is_drawn_from_what_is_not_finite() -> None:
    def broken(given: PolicyInputs) -> TokenOutput:
        return TokenOutput(logits=odds(given).logits * math.nan, values=torch.ones(ROWS))

    with pytest.raises(NonFiniteOutputError, match="not finite"):
        make().act(inputs(), network=broken)


@pytest.mark.parametrize("num_bins", [5, None])
def test_observations_after_the_decisions_are_valued_and_nothing_else(num_bins: int | None) -> None:
    policy = make(num_bins)
    tokens = policy.act(inputs(), generator=torch.Generator().manual_seed(0)).tokens
    whole = policy(inputs(), tokens, with_entropy=True)
    part, alone = policy(inputs(), tokens[:2], with_entropy=True), policy(inputs())
    torch.testing.assert_close(part.logprobs, whole.logprobs[:2])
    torch.testing.assert_close(part.entropy, whole.entropy[:2])
    torch.testing.assert_close(part.values, whole.values)
    torch.testing.assert_close(alone.values, whole.values)
    assert alone.logprobs is None and alone.entropy is None and alone.kl is None


def test_log_probabilities_are_not_rounded_where_the_network_may_be() -> None:
    """Under autocast the density is as exact as without, given the logits."""
    policy = make(5, temperature=1.6)
    tokens = policy.act(inputs(), generator=torch.Generator().manual_seed(0), with_behavior=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = policy.token_logits(inputs())
        found = policy(inputs(), tokens.tokens, behavior=tokens.behavior, with_entropy=True)
    reference = torch.log_softmax(logits.float() / 1.6, dim=-1)
    expected = reference.gather(-1, tokens.tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found.logprobs, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.entropy, -(reference.exp() * reference).sum(-1), atol=1e-6, rtol=0)
    behavior = tokens.behavior
    torch.testing.assert_close(found.kl, (behavior.exp() * (behavior - reference)).sum(-1), atol=1e-6, rtol=0)
