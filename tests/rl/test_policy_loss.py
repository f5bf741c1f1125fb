"""The policy loss: sign, direction of the ratio, masks, denominators, and how a batch may be cut."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.rl.masking import NonFiniteError, masked_sum
from vla_rl.rl.surrogates import SURROGATES, no_clip, policy_loss, policy_objective_sum

every_surrogate = pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES.keys())
seeds = st.integers(0, 2**32 - 1)


def vector() -> dict[str, torch.Tensor]:
    return {
        "logprobs": torch.tensor([0, 0.1, -0.1, 0.5, -0.5, 1], dtype=torch.float64),
        "behavior_logprobs": torch.zeros(6, dtype=torch.float64),
        "advantages": torch.tensor([1, 2, -1, -0.5, 1.5, 0.8], dtype=torch.float64),
        "mask": torch.ones(6, dtype=torch.bool),
    }


def random_batch(seed, shape=(3, 4, 5)):
    generator = torch.Generator().manual_seed(seed)
    new = partial(torch.randn, generator=generator, dtype=torch.float64)
    return {
        "logprobs": new(shape),
        "behavior_logprobs": new(shape),
        "advantages": new((*shape[:-1], 1)),
        "mask": torch.rand(shape, generator=generator) < 0.7,
    }


def loss_and_gradient(surrogate, batch):
    logprobs = batch["logprobs"].clone().requires_grad_()
    loss = policy_loss(surrogate, **{**batch, "logprobs": logprobs})
    loss.backward()
    return loss.detach(), logprobs.grad


@pytest.mark.parametrize(
    ("surrogate", "expected"),
    [("gipo", -0.615561106616), ("ppo", -0.558489962056), ("sapo", -1.608369729110)],
)
def test_golden_losses_of_the_six_element_vector(surrogate, expected):
    assert policy_loss(SURROGATES[surrogate], **vector()).item() == pytest.approx(expected, abs=1e-9)


@every_surrogate
def test_on_policy_the_gradient_is_minus_the_advantage_over_the_count(surrogate):
    batch = vector() | {"logprobs": torch.zeros(6, dtype=torch.float64)}
    _, gradient = loss_and_gradient(surrogate, batch)
    assert gradient.tolist() == pytest.approx([-1 / 6, -2 / 6, 1 / 6, 0.5 / 6, -1.5 / 6, -0.8 / 6], abs=1e-15)


@every_surrogate
def test_a_descent_step_makes_a_good_action_likelier(surrogate):
    batch = vector()
    _, gradient = loss_and_gradient(surrogate, batch | {"logprobs": batch["logprobs"] * 0.1})
    assert torch.equal(gradient.sign(), -batch["advantages"].sign())


def test_the_ratio_is_learner_over_behaviour():
    batch = vector() | {
        "logprobs": torch.full((6,), math.log(0.3)),
        "behavior_logprobs": torch.full((6,), math.log(0.2)),
    }
    batch["advantages"] = torch.ones(6)
    assert policy_loss(no_clip, **batch).item() == pytest.approx(-1.5, rel=1e-6)
    assert policy_loss(SURROGATES["gipo"], **batch).item() == pytest.approx(-1.5 * math.exp(-(math.log(1.5) ** 2) / 2))


@every_surrogate
@given(seed=seeds, poison=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_places_have_no_effect_whatever_they_hold(surrogate, seed, poison):
    batch = random_batch(seed)
    batch["advantages"] = batch["advantages"].expand(batch["mask"].shape)
    clean = loss_and_gradient(surrogate, batch)
    for names in (["logprobs"], ["behavior_logprobs"], ["advantages"], ["logprobs", "behavior_logprobs", "advantages"]):
        poisoned = batch | {name: batch[name].where(batch["mask"], poison) for name in names}
        loss, gradient = loss_and_gradient(surrogate, poisoned)
        assert torch.equal(loss, clean[0])
        assert torch.equal(gradient, clean[1])
        assert (gradient[~batch["mask"]] == 0).all()


@every_surrogate
@pytest.mark.parametrize("held", [0.0, math.nan, math.inf])
def test_a_fully_masked_batch_gives_zero_and_a_zero_gradient(surrogate, held):
    batch = {name: torch.full((2, 3), held) for name in ("logprobs", "behavior_logprobs", "advantages")}
    loss, gradient = loss_and_gradient(surrogate, batch | {"mask": torch.zeros(2, 3, dtype=torch.bool)})
    assert loss.item() == 0.0
    assert gradient.tolist() == [[0.0] * 3] * 2


def test_the_denominator_counts_valid_elements_not_rows():
    batch = {
        "logprobs": torch.zeros(2, 3),
        "behavior_logprobs": torch.zeros(2, 3),
        "advantages": torch.tensor([[1.0], [4.0]]),
    }
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert policy_loss(no_clip, **batch, mask=mask).item() == pytest.approx(-(1 + 1 + 1 + 4) / 4)
    total, count = policy_objective_sum(no_clip, **batch, mask=mask)
    assert (total.item(), count.item()) == (7.0, 4)
    row_mask = torch.tensor([[True], [False]])
    total, count = policy_objective_sum(no_clip, **batch, mask=row_mask)
    assert (total.item(), count.item()) == (3.0, 3)


def test_a_mask_of_rows_counts_elements():
    total, count = masked_sum(torch.full((2, 3), 2.0), torch.tensor([[True], [False]]))
    assert (total.item(), count.item()) == (6.0, 3)


def test_an_objective_that_does_not_vanish_at_zero_is_dropped_in_masked_places():
    batch = vector() | {"mask": torch.tensor([True, True, False, False, False, False])}
    total, count = policy_objective_sum(lambda x, advantages: x + advantages + 10.0, **batch)
    assert (total.item(), count.item()) == (pytest.approx(1.0 + 2.1 + 20.0), 2)


@every_surrogate
@given(seed=seeds)
def test_the_order_of_a_batch_is_irrelevant(surrogate, seed):
    batch = random_batch(seed)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    loss, gradient = loss_and_gradient(surrogate, batch)
    shuffled_loss, shuffled_gradient = loss_and_gradient(surrogate, {name: t[order] for name, t in batch.items()})
    assert shuffled_loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert torch.allclose(shuffled_gradient, gradient[order], rtol=0, atol=1e-15)


@every_surrogate
@given(seed=seeds)
def test_a_batch_may_be_cut_into_micro_batches(surrogate, seed):
    batch = random_batch(seed)
    parts = [policy_objective_sum(surrogate, **{n: t[i : i + 1] for n, t in batch.items()}) for i in range(3)]
    total, count = (sum(part[i] for part in parts) for i in (0, 1))
    assert policy_loss(surrogate, **batch).item() == pytest.approx(-(total / count.clamp(min=1)).item(), abs=1e-12)


@pytest.mark.parametrize("name", ["logprobs", "behavior_logprobs", "advantages"])
def test_nan_in_a_valid_place_is_refused_by_name_and_number(name):
    batch = vector()
    batch[name][2] = math.nan
    named = "advantages" if name == "advantages" else "log_ratio"
    with pytest.raises(NonFiniteError, match=rf"{named}: 1 of 6 valid places hold nan"):
        policy_loss(no_clip, **batch)


def test_an_infinite_advantage_in_a_valid_place_is_refused():
    batch = vector()
    batch["advantages"][0] = math.inf
    with pytest.raises(NonFiniteError, match="allowed are finite numbers"):
        policy_loss(no_clip, **batch)


@every_surrogate
def test_infinite_log_probabilities_in_valid_places_are_bounded(surrogate):
    batch = vector()
    batch["logprobs"][:2] = torch.tensor([-math.inf, math.inf])
    loss, gradient = loss_and_gradient(surrogate, batch)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_half_precision_is_lifted_before_the_subtraction():
    # In bfloat16 itself, 4.03125 − 0.0078125 would round to 4.03125.
    batch = {"logprobs": torch.tensor([-4.03125]), "behavior_logprobs": torch.tensor([-0.0078125])}
    batch = {name: tensor.bfloat16() for name, tensor in batch.items()}
    loss = policy_loss(no_clip, **batch, advantages=torch.ones(1), mask=torch.ones(1, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-math.exp(-4.0234375), rel=1e-6)


def test_no_gradient_flows_into_behaviour_or_advantages():
    batch = vector()
    leaves = [batch[name].requires_grad_() for name in ("logprobs", "behavior_logprobs", "advantages")]
    policy_loss(SURROGATES["gipo"], **batch).backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False, False]
