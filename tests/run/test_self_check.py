"""What a checkpoint must pass before a run or an evaluation starts from it."""

import numpy as np
import pytest
import torch

from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.recipe import build_recipe
from vla_rl.run.plan import plan_policy

RECIPE = """
name: small
env: {name: libero, suite: libero_goal, tasks: [3]}
policy: {name: openvla_oft, image_size: 28, lora: null}
surrogate: {name: gipo}
budget: {optimizer_steps: 10}
"""


def built(*overrides):
    recipe = build_recipe(RECIPE, overrides)
    return recipe.policy, plan_policy(recipe.setup).build(device="cpu")


def check(section, policy):
    section.check(policy)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("check")
    write_checkpoint(built()[1], path, step=0)
    return path


@pytest.fixture
def loaded(directory):
    return built(f"policy.checkpoint={directory}")


pytestmark = pytest.mark.filterwarnings("ignore:.*look untrained")  # random weights, scaled down


def blind(policy):
    with torch.no_grad():
        policy.model.projector.fc3.weight.zero_()


def test_a_sound_checkpoint_passes(loaded):
    check(*loaded)


def test_a_checkpoint_that_ignores_its_camera_is_refused_in_one_sentence(loaded, directory):
    blind(loaded[1])
    with pytest.raises(ValueError, match=r"(?s)images do not matter.*self_test=false") as raised:
        check(*loaded)
    assert str(raised.value).startswith(str(directory))
    assert len(str(raised.value).splitlines()) == 3  # the folder, the finding, the way on


def test_statistics_that_scale_every_component_to_nothing_are_refused(loaded):
    quantiles = loaded[1].statistics.action
    quantiles.q99[:6] = quantiles.q01[:6]  # the gripper is not scaled
    with pytest.raises(ValueError, match="statistics 'libero_goal_no_noops' scale every action to 0"):
        check(*loaded)


def test_a_component_that_never_moved_in_the_data_is_no_fault(loaded):
    quantiles = loaded[1].statistics.action
    quantiles.q99[2] = quantiles.q01[2]
    check(*loaded)
    actions = loaded[1].decode_tokens(np.array([[0] * 56, [255] * 56]), np.array([0, 0]))
    np.testing.assert_allclose(actions[:, :, 2], quantiles.q01[2], atol=1e-7)  # whatever the token: range 0, plus 1e-8
    assert (np.abs(actions[0, :, 1] - actions[1, :, 1]) > 0.5).all()


def test_quantiles_in_the_wrong_order_and_no_numbers_are_refused(loaded):
    quantiles = loaded[1].statistics.action
    for value in (quantiles.q01[2] - 1.0, np.nan, np.inf):
        quantiles.q99[2] = value
        with pytest.raises(ValueError, match="to 0 or to a non-finite number"):
            check(*loaded)


def test_a_component_of_proprioception_that_the_mask_leaves_out_is_not_scaled(loaded):
    policy = loaded[1]
    policy.proprio_mask[3] = False
    quantiles = policy.statistics.proprio
    middle = torch.from_numpy((quantiles.q01 + quantiles.q99) / 2).float()
    middle[3] = 0.25
    scaled = policy._normalized_proprio(middle[None])[0]
    np.testing.assert_allclose(scaled, [0, 0, 0, 0.25, 0, 0, 0, 0], atol=1e-4)


def test_action_rows_that_look_untrained_are_warned_of(loaded):
    with pytest.warns(UserWarning, match="action rows of lm_head look untrained"):
        check(*loaded)


def test_a_weight_that_is_no_number_is_refused(loaded):
    with torch.no_grad():
        loaded[1].model.projector.fc2.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"its hiddens are not finite, nor is the weight projector\.fc2\.bias"):
        check(*loaded)


def test_random_weights_and_a_recipe_that_says_so_are_not_tested(loaded):
    section, policy = built()
    blind(policy)
    check(section, policy)
    blind(loaded[1])
    check(build_recipe(RECIPE, ["policy.self_test=false"]).policy, loaded[1])


def test_all_weights_are_trained_where_the_recipe_says_so():
    _, policy = built("policy.train_backbone=true")
    frozen = {name for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    assert frozen == {"model.language_model.lm_head.weight"}  # its action rows are a parameter of their own


def test_adapters_and_training_the_weights_themselves_exclude_each_other():
    with pytest.raises(ValueError, match="adapters are for weights that stay as they are"):
        build_recipe(RECIPE, ["policy.train_backbone=true", "policy.lora.rank=4"])
