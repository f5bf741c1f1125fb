import numpy as np
import pytest

from vla_rl.policies.action_tokens import (
    FIRST_ACTION_ID,
    Quantiles,
    decode_tokens,
    to_libero_gripper,
    unnormalize_actions,
)

SPATIAL = Quantiles.from_mapping(
    {
        "q01": [-0.74547321, -0.66160715, -0.9375, -0.10714286, -0.20678571, -0.18428572, 0],
        "q99": [0.9375, 0.87589288, 0.93214285, 0.10392857, 0.17678571, 0.14571428, 1],
        "mask": [True] * 6 + [False],
    }
)


@pytest.mark.parametrize(
    ("vocabulary_id", "value"),
    [(31999, -0.99607843), (31872, 0.0), (31745, 0.99607843), (31744, 0.99607843)],
)
def test_ids_decode_to_the_values_of_the_published_table(vocabulary_id, value):
    assert decode_tokens([vocabulary_id - FIRST_ACTION_ID])[0] == pytest.approx(value, abs=5e-9)


def test_a_larger_token_is_a_smaller_action_except_for_the_alias_at_zero():
    values = decode_tokens(np.arange(256))
    assert values[0] == values[1]
    np.testing.assert_allclose(np.diff(values[1:]), -2 / 255, atol=1e-12)


def test_tokens_outside_the_table_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.255; found -1\.\.256"):
        decode_tokens([-1, 256])


def test_unnormalisation_maps_the_interval_onto_the_quantiles_and_leaves_the_gripper():
    actions = unnormalize_actions(np.array([[-1.0] * 7, [1.0] * 7, [0.0] * 7]), SPATIAL)
    np.testing.assert_allclose(actions[0, :6], SPATIAL.q01[:6], atol=1e-12)
    np.testing.assert_allclose(actions[1, :6], SPATIAL.q99[:6], atol=2e-8)
    assert actions[2, 2] == pytest.approx((-0.9375 + 0.93214285) / 2, abs=1e-8)
    assert actions[:, 6].tolist() == [-1.0, 1.0, 0.0]
    assert actions.dtype == np.float64


def test_the_gripper_opens_above_one_half_and_opening_is_minus_one():
    actions = np.tile(np.arange(7.0), (4, 1))
    actions[:, 6] = [0.996, 0.51, 0.49, 0.0]
    commands = to_libero_gripper(actions)
    assert commands[:, 6].tolist() == [-1.0, -1.0, 1.0, 1.0]
    np.testing.assert_array_equal(commands[:, :6], actions[:, :6])


def test_statistics_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="one length"):
        Quantiles.from_mapping({"q01": [0.0], "q99": [1.0, 2.0]})
