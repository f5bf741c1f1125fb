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


def test_the_value_loss_trains_the_critic_alone():
    policy = make()
    policy.network(inputs()).values.sum().backward()
    reached = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in policy.named_parameters() if policy.is_value_parameter(name)} != set()


def test_the_policy_loss_trains_all_but_the_critic():
    policy = make()
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
