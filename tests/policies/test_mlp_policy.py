import dataclasses
import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.mlp.network import build_mlp
from vla_rl.policies.mlp.section import MLPSection
from vla_rl.policies.parameters import assign_parameters
from vla_rl.rl.distributions import MAX_STD, MIN_STD, width_of
from vla_rl.types import PolicyInputs, StateSpace

SECTION = MLPSection(name="mlp", num_bins=11, hidden_dim=16)
STATES = StateSpace(state_dim=5, action_dim=3, chunk_size=2)
CONTEXT = PolicyContext(seed=0, suite="toy", tasks=("reach",), states=STATES)


def make(*, context=CONTEXT, **changes):
    return build_mlp(SECTION.model_copy(update=changes), context, device="cpu")


def inputs(batch=4):
    state = torch.randn(batch, 5, generator=torch.Generator().manual_seed(0))
    return PolicyInputs(torch.zeros(batch, 0, 0, 0, 3, dtype=torch.uint8), state, torch.zeros(batch, dtype=torch.int64))


def test_outputs_have_the_shapes_of_the_protocol():
    policy = make()
    output = policy.network(inputs())
    assert output.logits.shape == (4, 6, 11) and output.values.shape == (4,)
    assert output.logits.dtype == output.values.dtype == torch.float32


def test_bins_are_evenly_spaced_from_minus_one_to_one():
    policy = make()
    tokens = np.array([[0, 5, 10, 1, 2, 9]], dtype=np.int16)
    actions = policy.decode_tokens(tokens, np.array([0]))
    np.testing.assert_allclose(actions, [[[-1.0, 0.0, 1.0], [-0.8, -0.6, 0.8]]], atol=1e-7)
    assert actions.dtype == np.float32


def test_without_bins_a_token_has_a_mean_and_a_log_deviation_and_is_clipped_on_its_way_out():
    policy = make(distribution="gaussian")
    assert policy.network(inputs()).logits.shape == (4, 6, 2)
    assert policy.action_spec.token_dtype is np.float32
    actions = policy.decode_tokens(np.array([[-3.0, 0.25, 1.5, -0.5, 0.0, 0.75]], dtype=np.float32), np.array([0]))
    np.testing.assert_array_equal(actions, [[[-1.0, 0.25, 1.0], [-0.5, 0.0, 0.75]]])


def test_without_a_dependence_on_the_state_the_deviation_is_one_parameter_for_each_component():
    policy = make(distribution="gaussian", state_dependent_std=False, initial_std=0.6)
    assert policy.width.shape == (6,)
    with torch.no_grad():
        acted = policy.act(inputs(), greedy=True, with_behavior=True)
        policy.width[1] = width_of(0.2)
        changed = policy.act(inputs(), with_behavior=True)
    assert acted.behavior[..., 1].exp().numpy() == pytest.approx(0.6)
    assert torch.equal(acted.tokens, acted.behavior[..., 0])  # greedy takes the mean,
    assert not torch.equal(acted.tokens[0], acted.tokens[1])  # which depends on the state
    assert changed.behavior[0, :, 1].exp().tolist() == pytest.approx([0.6, 0.2, 0.6, 0.6, 0.6, 0.6])


@pytest.mark.parametrize("of_state", [True, False])
def test_a_bounded_mean_is_the_tanh_of_the_unbounded_one(of_state):
    free, bounded = (
        make(distribution="gaussian", state_dependent_std=of_state, mean=mean).network(inputs()).logits
        for mean in ("linear", "tanh")
    )
    torch.testing.assert_close(bounded[..., 0], free[..., 0].tanh())
    assert torch.equal(bounded[..., 1], free[..., 1])
    assert not torch.equal(bounded[..., 0], free[..., 0])


def test_a_deviation_of_the_state_starts_around_the_same_value():
    narrow, wide = (make(distribution="gaussian", initial_std=std) for std in (None, 0.6))
    widths = [policy.network(inputs()).logits[..., 1] for policy in (narrow, wide)]
    assert (widths[1] - widths[0]).detach().numpy() == pytest.approx(width_of(0.6), abs=1e-6)
    assert torch.equal(narrow.network(inputs()).logits[..., 0], wide.network(inputs()).logits[..., 0])


@pytest.mark.parametrize("family", [{}, {"distribution": "gaussian"}])
def test_the_scale_of_the_outputs_scales_what_an_untrained_network_gives(family):
    full, small = (make(**family, output_scale=scale).network(inputs()) for scale in (1.0, 0.01))
    torch.testing.assert_close(small.logits, 0.01 * full.logits)
    assert torch.equal(small.values, full.values)


@pytest.mark.parametrize("std", [0.1, 1.0])
def test_an_initial_deviation_at_a_bound_is_refused(std):
    assert std in (MIN_STD, MAX_STD)
    with pytest.raises(ValidationError, match="initial_std"):
        MLPSection(name="mlp", distribution="gaussian", initial_std=std)


def test_the_value_loss_trains_the_critic_alone():
    policy = make()
    policy.network(inputs()).values.sum().backward()
    reached = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in policy.named_parameters() if policy.is_value_parameter(name)} != set()


@pytest.mark.parametrize("family", [{}, {"distribution": "gaussian", "state_dependent_std": False}])
def test_the_policy_loss_trains_all_but_the_critic(family):
    policy = make(**family)
    policy.network(inputs()).logits.square().sum().backward()
    reached = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in policy.named_parameters() if not policy.is_value_parameter(name)}


def test_a_pickled_builder_gives_the_same_policy_and_an_empty_one_takes_its_parameters():
    builder = pickle.loads(pickle.dumps(SECTION.plan(CONTEXT).build))
    full, again, empty = builder(device="cpu"), builder(device="cpu"), builder(device="cpu", empty=True)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assign_parameters(empty, dict(full.named_parameters()))
    expected = full.network(inputs())
    for policy in (again, empty):
        output = policy.network(inputs())
        assert torch.equal(output.logits, expected.logits) and torch.equal(output.values, expected.values)


def test_another_seed_gives_another_policy():
    first, other = make(), make(context=dataclasses.replace(CONTEXT, seed=1))
    assert not torch.equal(first.network(inputs()).logits, other.network(inputs()).logits)


def test_a_hidden_layer_of_one_is_refused():
    with pytest.raises(ValidationError, match=r"hidden_dim\n.*greater than or equal to 2"):
        MLPSection(name="mlp", hidden_dim=1)
