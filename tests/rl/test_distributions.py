"""Distributions of action components: hand-computed numbers, gradients, and what torch.distributions says."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vla_rl.rl.distributions import Categorical, Gaussian, distribution_of, width_of

LOGITS = torch.tensor([[0.0, math.log(3.0)], [math.log(9.0), 0.0]])
FAMILIES = pytest.mark.parametrize("num_bins", [7, None])


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def outputs(num_bins, *shape, number=0):
    return torch.randn(*shape, num_bins or 2, generator=seeded(number), dtype=torch.float64)


def logprobs(logits, taken, temperature):
    return Categorical().terms(logits, taken, temperature).logprobs


# --- both ------------------------------------------------------------------------------------------------------------


@FAMILIES
def test_a_draw_comes_with_the_log_probability_that_the_learner_computes(num_bins):
    family, numbers = distribution_of(num_bins), outputs(num_bins, 5, 56).float()
    drawn = family.sample(numbers, 1.6, generator=seeded(1))
    assert drawn.taken.shape == (5, 56) and drawn.logprobs.dtype == torch.float32
    assert torch.equal(drawn.logprobs, family.terms(numbers, drawn.taken, 1.6).logprobs)


@FAMILIES
@pytest.mark.parametrize("greedy", [False, True])
def test_a_draw_comes_with_the_parameters_that_are_stored_of_a_behaviour(num_bins, greedy):
    family, numbers = distribution_of(num_bins), outputs(num_bins, 5, 3)
    drawn = family.sample(numbers, 1.6, generator=seeded(1), greedy=greedy)
    assert torch.equal(drawn.parameters, family.parameters(numbers, 1.6))
    assert not torch.equal(drawn.parameters, family.parameters(numbers, 1.0))


@FAMILIES
def test_the_same_generator_draws_the_same(num_bins):
    family, numbers = distribution_of(num_bins), outputs(num_bins, 4, 3)
    first, again, other = (family.sample(numbers, 1.0, generator=seeded(seed))[0] for seed in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)


@FAMILIES
def test_rows_with_generators_of_their_own_draw_as_if_each_were_alone(num_bins):
    family, numbers = distribution_of(num_bins), outputs(num_bins, 4, 3)
    together = family.sample(numbers, 1.0, generator=[seeded(seed) for seed in (5, 6, 7, 8)])[0]
    for row in range(4):
        alone = family.sample(numbers[row : row + 1], 1.0, generator=seeded(5 + row))[0]
        assert torch.equal(together[row : row + 1], alone)
    with pytest.raises(ValueError, match="4 rows were to be drawn from 3 generators"):
        family.sample(numbers, 1.0, generator=[seeded(seed) for seed in (5, 6, 7)])


@FAMILIES
def test_gradcheck_of_all_terms(num_bins):
    family, numbers = distribution_of(num_bins), outputs(num_bins, 3, 4).requires_grad_()
    taken = family.sample(numbers.detach(), 1.0, generator=seeded())[0]
    behavior = family.parameters(outputs(num_bins, 3, 4, number=1), 1.3)

    def all_terms(x):
        terms = family.terms(x, taken, 1.3, behavior=behavior, with_entropy=True)
        return terms.logprobs, terms.entropy, terms.kl

    assert torch.autograd.gradcheck(all_terms, numbers)


@FAMILIES
@pytest.mark.parametrize("used", ["logprobs", "entropy", "kl"])
def test_a_term_alone_has_the_gradient_that_it_has_among_the_others(num_bins, used):
    family = distribution_of(num_bins)
    behavior, taken = family.parameters(outputs(num_bins, 3, 4, number=1), 1.0), torch.ones(3, 4)

    def gradient(function):
        x = outputs(num_bins, 3, 4).requires_grad_()
        return torch.autograd.grad(function(family.terms(x, taken, 1.0, behavior=behavior, with_entropy=True)), x)[0]

    alone = gradient(lambda terms: getattr(terms, used).sum())
    all_three = gradient(lambda terms: terms.logprobs.sum() + terms.entropy.sum() + terms.kl.sum())
    rest = gradient(
        lambda terms: sum(getattr(terms, name).sum() for name in ("logprobs", "entropy", "kl") if name != used)
    )
    torch.testing.assert_close(alone, all_three - rest)
    assert alone.abs().max() > 1e-3


@FAMILIES
def test_outputs_beyond_the_taken_actions_have_no_terms_and_a_gradient_of_zero(num_bins):
    family, taken = distribution_of(num_bins), torch.ones(3, 4)
    behavior = family.parameters(outputs(num_bins, 3, 4, number=1), 1.0)

    def total_of(x):
        terms = family.terms(x, taken, 1.3, behavior=behavior, with_entropy=True)
        assert terms.logprobs.shape == terms.entropy.shape == terms.kl.shape == (3, 4)
        return terms.logprobs.sum() + 2.0 * terms.entropy.sum() + 3.0 * terms.kl.sum()

    more = torch.cat([outputs(num_bins, 3, 4), outputs(num_bins, 2, 4, number=2)]).requires_grad_()
    exact = outputs(num_bins, 3, 4).requires_grad_()
    assert torch.equal(total_of(more), total_of(exact))
    gradient, expected = (torch.autograd.grad(total_of(x), x)[0] for x in (more, exact))
    assert torch.equal(gradient[:3], expected)
    assert torch.equal(gradient[3:], torch.zeros_like(gradient[3:]))


@FAMILIES
def test_the_behaviour_is_a_constant(num_bins):
    family, behavior = distribution_of(num_bins), outputs(num_bins, 2, 3).requires_grad_()
    numbers = outputs(num_bins, 2, 3, number=1).requires_grad_()
    family.terms(numbers, torch.zeros(2, 3), 1.0, behavior=behavior).kl.sum().backward()
    assert behavior.grad is None


@FAMILIES
def test_kl_is_zero_with_zero_gradient_at_equal_distributions(num_bins):
    family, numbers = distribution_of(num_bins), outputs(num_bins, 2, 3).requires_grad_()
    kl = family.terms(numbers, torch.zeros(2, 3), 0.7, behavior=family.parameters(numbers, 0.7)).kl
    kl.sum().backward()
    assert kl.abs().max() < 1e-14 and numbers.grad.abs().max() < 1e-14


@FAMILIES
def test_what_is_not_asked_for_is_not_there(num_bins):
    terms = distribution_of(num_bins).terms(outputs(num_bins, 2, 3), torch.zeros(2, 3), 1.0)
    assert terms.entropy is None and terms.kl is None


@FAMILIES
def test_a_temperature_of_zero_is_refused_with_the_way_out(num_bins):
    with pytest.raises(ValueError, match="greedy=True"):
        distribution_of(num_bins).sample(outputs(num_bins, 2, 3), 0.0)


@FAMILIES
def test_a_temperature_divides_the_log_density_up_to_a_constant(num_bins):
    family, numbers = distribution_of(num_bins), outputs(num_bins, 6).expand(5, 6, -1)
    taken = torch.arange(5.0).unsqueeze(-1).expand(5, 6)
    cold, warm = (family.terms(numbers, taken, temperature).logprobs for temperature in (1.0, 2.5))
    torch.testing.assert_close((cold - cold[0]) / 2.5, warm - warm[0])


# --- categorical -----------------------------------------------------------------------------------------------------


def test_log_probabilities_are_of_the_tempered_distribution():
    # At temperature 1: (1/4, 3/4). At temperature 2 the odds are the square root: 9 to 1 becomes 3 to 1.
    assert logprobs(LOGITS, torch.tensor([1, 0]), 1.0).exp().tolist() == pytest.approx([0.75, 0.9])
    assert logprobs(LOGITS, torch.tensor([1, 0]), 2.0)[1].exp().item() == pytest.approx(0.75)


def test_frequencies_of_samples_approach_the_tempered_probabilities():
    tokens, *_ = Categorical().sample(LOGITS[:1].expand(20_000, 2), 0.5, generator=seeded())
    assert tokens.dtype == torch.int64
    assert tokens.float().mean().item() == pytest.approx(0.9, abs=0.01)  # odds 3 to 1 become 9 to 1


@pytest.mark.parametrize("impossible", [0, 1, 3])
def test_a_bin_of_probability_zero_is_never_drawn_and_all_others_are(impossible):
    logits = torch.tensor([0.0, -1.0, 2.0, 1.0])
    logits[impossible] = -math.inf
    drawn = Categorical().sample(logits.expand(20_000, 4), 1.0, generator=torch.Generator().manual_seed(1))
    taken, logprobs = drawn.taken, drawn.logprobs
    assert sorted(set(taken.tolist())) == [j for j in range(4) if j != impossible]
    assert torch.isfinite(logprobs).all()


@pytest.mark.parametrize(("level", "drawn"), [(0.0, 1), (1.0 - 2.0**-53, 2)])
def test_the_smallest_and_the_largest_random_number_draw_a_bin_that_can_be(level, drawn, monkeypatch):
    logits = torch.tensor([-math.inf, 0.0, 1.0, -math.inf])
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, level, dtype=torch.float64))
    assert Categorical().sample(logits, 1.0)[0].item() == drawn


def test_greedy_takes_the_argmax_and_reports_tempered_log_probabilities():
    tokens, drawn, _ = Categorical().sample(LOGITS, 2.0, greedy=True)
    assert tokens.tolist() == [1, 0]
    assert torch.equal(drawn, logprobs(LOGITS, tokens, 2.0))


def test_reduced_precision_logits_are_normalised_in_float32():
    logits = torch.randn(4, 256, generator=seeded()).bfloat16()
    each = torch.stack([logprobs(logits, torch.full((4,), token), 1.0) for token in range(256)])
    assert each.dtype == torch.float32
    torch.testing.assert_close(each.exp().sum(0), torch.ones(4), atol=1e-5, rtol=0)


def test_the_gradient_of_a_log_probability_is_one_hot_minus_probabilities_over_temperature():
    logits = LOGITS[:1].clone().requires_grad_()
    logprobs(logits, torch.tensor([1]), 2.0).sum().backward()
    root = math.sqrt(3.0)  # probabilities (1, √3) / (1 + √3)
    assert logits.grad[0].tolist() == pytest.approx([-0.5 / (1 + root), 0.5 / (1 + root)])


def test_entropy_of_known_distributions():
    logits = torch.tensor([[0.0] * 4, [math.log(3.0), 0.0, -1e4, -1e4], [7.0, -1e4, -1e4, -1e4]], dtype=torch.float64)
    entropy = Categorical().terms(logits, torch.zeros(3), 1.0, with_entropy=True).entropy
    expected = [math.log(4.0), 0.75 * math.log(4 / 3) + 0.25 * math.log(4.0), 0.0]
    assert entropy.tolist() == pytest.approx(expected, abs=1e-12)


def test_kl_is_exact_and_directed_from_behaviour_to_policy():
    behavior = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    logits = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log() + 5.0
    kl = Categorical().terms(logits, torch.zeros(1), 1.0, behavior=behavior).kl
    assert kl.item() == pytest.approx(0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0), abs=1e-12)


def test_the_gradient_keeps_one_tensor_of_all_bins_and_one_more_with_the_kl():
    logits, taken = outputs(256, 8, 4).requires_grad_(), torch.zeros(8, 4)

    def kept(**wanted):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
            Categorical().terms(logits, taken, 1.0, **wanted)
        return sum(size == logits.numel() for size in sizes)

    assert kept(with_entropy=True) == 1
    assert kept(with_entropy=True, behavior=logits.detach().log_softmax(-1)) == 2


# --- Gaussian --------------------------------------------------------------------------------------------------------


def test_the_width_is_a_place_between_the_bounds_of_the_deviation():
    wide = torch.tensor([[0.0, -100.0], [0.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    stds = Gaussian().parameters(wide, 1.0)[:, 1].exp().tolist()
    assert stds == pytest.approx([0.1, math.sqrt(0.1), 1.0])


@pytest.mark.parametrize("std", [0.11, 0.3, 0.6, 0.99])
def test_the_width_of_a_deviation_gives_that_deviation(std):
    output = torch.tensor([[0.0, width_of(std)]], dtype=torch.float64)
    assert Gaussian().parameters(output, 1.0)[0, 1].exp().item() == pytest.approx(std)


def test_terms_of_a_gaussian_by_hand():
    """N(0, 0.5) at 1: -2 - ln 0.5 - ln √2π. KL(N(1, 0.25) ‖ N(0, 0.5)) = ln 2 + (0.0625 + 1) / 0.5 - 0.5."""
    outputs, acted = (
        torch.tensor([[[mean, width_of(std)]]], dtype=torch.float64) for mean, std in ((0.0, 0.5), (1.0, 0.25))
    )
    behavior = Gaussian().parameters(acted, 1.0)
    ours = Gaussian().terms(outputs, torch.ones(1, 1, dtype=torch.float64), 1.0, behavior=behavior, with_entropy=True)
    assert ours.logprobs.item() == pytest.approx(-2.0 + 0.6931471806 - 0.9189385332)
    assert ours.entropy.item() == pytest.approx(0.5 + 0.9189385332 - 0.6931471806)
    assert ours.kl.item() == pytest.approx(0.6931471806 + 2.125 - 0.5)


def test_gaussian_terms_are_those_of_torch_distributions():
    stds, behavior_stds = ([0.2, 0.5, 0.9], [0.3, 0.15, 0.8])
    means = torch.randn(2, 3, generator=seeded(2), dtype=torch.float64)
    numbers, acted = (
        torch.stack([mean, torch.tensor([width_of(std) for std in row], dtype=torch.float64)], dim=-1)
        for mean, row in zip(means, (stds, behavior_stds), strict=True)
    )
    taken = torch.randn(3, generator=seeded(3), dtype=torch.float64)
    ours = Gaussian().terms(numbers, taken, 1.0, behavior=Gaussian().parameters(acted, 1.0), with_entropy=True)
    policy, behavior = (
        Normal(mean, torch.tensor(row, dtype=torch.float64))
        for mean, row in zip(means, (stds, behavior_stds), strict=True)
    )
    torch.testing.assert_close(ours.logprobs, policy.log_prob(taken))
    torch.testing.assert_close(ours.entropy, policy.entropy())
    torch.testing.assert_close(ours.kl, kl_divergence(behavior, policy))


def test_gaussian_samples_have_the_mean_and_the_tempered_deviation():
    numbers = torch.tensor([0.5, width_of(0.2)]).expand(40_000, 1, 2)
    taken, *_ = Gaussian().sample(numbers, 4.0, generator=seeded())
    assert taken.mean().item() == pytest.approx(0.5, abs=0.01)
    assert taken.std().item() == pytest.approx(0.4, abs=0.01)  # 0.2 · √4


def test_greedy_takes_the_mean():
    taken, drawn, _ = Gaussian().sample(torch.tensor([[0.5, width_of(0.5)]]), 1.0, greedy=True)
    assert taken.tolist() == [0.5]
    assert drawn.item() == pytest.approx(-math.log(0.5) - 0.5 * math.log(2 * math.pi))
