import dataclasses

import numpy as np
import pytest
import torch

from vla_rl.policies.lora import checkpoint_name
from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft.self_test import Findings, self_test
from vla_rl.policies.parameters import assign_parameters
from vla_rl.policies.token_policy import TokenOutput
from vla_rl.recipe import RecipeError, build_recipe
from vla_rl.types import ActionSpec, ObservationSpec, PolicyInputs
from vla_rl.workers.compiled import CompiledForward

EQUALLY_LONG = ("open the drawer", "push the plate")


def rows(inputs, chosen):
    return PolicyInputs(inputs.frames[chosen], inputs.state[chosen], inputs.task_index[chosen])


def trainable(policy):
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def test_specs_say_what_libero_needs(build):
    policy = build(num_images=2)
    assert policy.observation_spec == ObservationSpec(num_images=2, image_size=28, state_dim=8)
    assert policy.action_spec == ActionSpec(chunk_size=8, action_dim=7, num_bins=256)


def test_outputs_have_the_shapes_and_dtype_of_the_protocol(build, make_inputs):
    policy = build()
    output = policy.network(make_inputs(policy, [0, 1, 2, 0]))
    assert output.logits.shape == (4, 56, 256) and output.values.shape == (4,)
    assert output.logits.dtype == output.values.dtype == torch.float32


@torch.no_grad()
def test_new_adapters_and_action_rows_leave_the_logits_of_the_base_model_alone(build, make_inputs):
    adapted, plain = build(), build(lora=None, train_action_rows=False)
    inputs = make_inputs(adapted, [0, 1])
    assert torch.equal(adapted.network(inputs).logits, plain.network(inputs).logits)


@torch.no_grad()
def test_a_right_padded_batch_gives_each_member_what_it_gets_alone(build, make_inputs, tasks):
    policy = build()
    inputs = make_inputs(policy, [0, 1, 2])
    together = policy.network(inputs)
    for task in range(3):
        alone = build(tasks=tasks[task : task + 1])
        single = alone.network(PolicyInputs(inputs.frames[[task]], inputs.state[[task]], torch.tensor([0])))
        torch.testing.assert_close(together.logits[[task]], single.logits, atol=5e-5, rtol=0)
        torch.testing.assert_close(together.values[[task]], single.values, atol=5e-5, rtol=0)


@pytest.fixture
def masks(monkeypatch):
    """Masks that Llama's layers hand to the attention kernel, one per call; the vision transformers' have none."""
    handed, plain = [], torch.nn.functional.scaled_dot_product_attention

    def record(query, key, value, attn_mask=None, **keywords):
        handed.append(attn_mask)
        assert not keywords.get("is_causal")
        return plain(query, key, value, attn_mask=attn_mask, **keywords)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    return handed


@torch.no_grad()
def test_a_batch_of_one_prompt_length_gives_attention_no_mask_and_the_same_outputs(build, make_inputs, masks):
    policy = build(tasks=(*EQUALLY_LONG, "pick up the red mug"))
    inputs = make_inputs(policy, [0, 0, 1])
    buckets = policy.bucket_of(np.array([0, 1, 2])).tolist()
    assert buckets[0] == buckets[1] < buckets[2]
    padded = policy.network(inputs)
    llama = len(policy.model.language_model.model.layers)
    assert sum(mask is not None for mask in masks) == llama
    masks.clear()
    exact = policy.network(dataclasses.replace(inputs, buckets=(buckets[0],)))
    assert len(masks) > llama and not any(mask is not None for mask in masks)
    torch.testing.assert_close(exact.logits, padded.logits, atol=5e-5, rtol=0)
    torch.testing.assert_close(exact.values, padded.values, atol=5e-5, rtol=0)


@torch.no_grad()
def test_a_mixed_batch_is_as_wide_as_its_longest_prompt(build, make_inputs, tasks, masks):
    policy = build(tasks=(*tasks, tasks[1] + " and close the drawer"))
    inputs = make_inputs(policy, [0, 1])
    widest = policy.network(inputs)
    widths = {mask.shape[-1] for mask in masks if mask is not None}
    masks.clear()
    buckets = tuple(policy.bucket_of(np.array([0, 1])).tolist())
    narrow = policy.network(dataclasses.replace(inputs, buckets=buckets))
    extra = int(policy.prompt_lengths.max()) - buckets[1]
    assert extra > 0 and widths == {mask.shape[-1] + extra for mask in masks if mask is not None}
    torch.testing.assert_close(narrow.logits, widest.logits, atol=5e-5, rtol=0)


def test_one_prompt_length_in_the_whole_run_needs_no_mask_without_being_asked(build, make_inputs, masks):
    policy = build(tasks=EQUALLY_LONG)
    policy.network(make_inputs(policy, [0, 1])).logits.square().mean().backward()
    assert masks and not any(mask is not None for mask in masks)


@torch.no_grad()
def test_image_state_and_task_each_change_the_logits(build, make_inputs):
    policy = build()
    inputs = make_inputs(policy, [0])
    reference = policy.network(inputs).logits
    other = make_inputs(policy, [0], seed=1)
    for changed in (
        PolicyInputs(other.frames, inputs.state, inputs.task_index),
        PolicyInputs(inputs.frames, other.state, inputs.task_index),
        PolicyInputs(inputs.frames, inputs.state, torch.tensor([2])),
    ):
        assert (policy.network(changed).logits - reference).abs().max() > 1e-3


@torch.no_grad()
def test_without_proprioception_the_state_is_not_looked_at(build, make_inputs):
    policy = build(proprio=False)
    inputs = make_inputs(policy, [0])
    logits = policy.network(inputs).logits
    assert torch.equal(policy.network(PolicyInputs(inputs.frames, inputs.state + 1, inputs.task_index)).logits, logits)


@torch.no_grad()
def test_proprioception_beyond_the_quantiles_counts_as_at_the_quantiles(build, make_inputs):
    policy = build()
    inputs = make_inputs(policy, [0])
    far, further = (PolicyInputs(inputs.frames, torch.full((1, 8), size), inputs.task_index) for size in (50.0, 90.0))
    assert torch.equal(policy.network(far).logits, policy.network(further).logits)


@torch.no_grad()
def test_dropping_stop_changes_the_logits_of_the_rlinf_profile(build, make_inputs):
    kept, dropped = build(profile="simplevla"), build(profile="rlinf")
    inputs = make_inputs(kept, [0])
    assert (kept.network(inputs).logits - dropped.network(inputs).logits).abs().max() > 1e-4


def test_exactly_adapters_rows_projector_and_critic_are_trained_and_every_one_gets_a_gradient(build, make_inputs):
    policy = build()
    output = policy.network(make_inputs(policy, [0, 1]))
    (output.logits.square().mean() + output.values.square().mean()).backward()
    for name, parameter in policy.named_parameters():
        expected = "lora_" in name or name.startswith(("action_rows", "value_head", "model.proprio_projector"))
        assert parameter.requires_grad is expected, name
        assert (parameter.grad is not None) is expected, name
    # B is zero at the start, so A's gradient is zero too; a softmax does not notice its scores' common bias.
    still = {name for name, parameter in trainable(policy).items() if parameter.grad.abs().max() < 1e-9}
    assert still - {"value_head.score.bias"} == {name for name in trainable(policy) if "lora_A" in name}


def test_choices_switch_off_what_is_trained(build):
    policy = build(lora=None, train_action_rows=False, train_proprio_projector=False)
    assert all(policy.is_value_parameter(name) for name in trainable(policy))


def test_the_value_gradient_stays_out_of_the_trunk_unless_it_is_let_in(build, make_inputs):
    reaches_adapters = []
    for detach in (True, False):
        policy = build(detach_value=detach)
        policy.network(make_inputs(policy, [0, 1])).values.sum().backward()
        reached = {name for name, parameter in trainable(policy).items() if parameter.grad is not None}
        assert {name for name in trainable(policy) if policy.is_value_parameter(name)} <= reached
        reaches_adapters.append(any("lora_" in name for name in reached))
    assert reaches_adapters == [False, True]


@pytest.mark.parametrize("head", ["attention_pool", "last_prompt_token"])
def test_each_critic_tells_observations_apart(build, make_inputs, head):
    policy = build(value_head=head)
    values = policy.network(make_inputs(policy, [0, 0, 0])).values
    assert values.shape == (3,) and values.std() > 1e-3


def test_without_a_critic_nothing_of_one_is_built_and_values_are_no_numbers(build, make_inputs):
    policy, usual = build(value_head="none"), build()
    output, expected = (it.network(make_inputs(it, [0, 0])) for it in (policy, usual))
    assert not [name for name, _ in policy.named_parameters() if policy.is_value_parameter(name)]
    assert output.values.shape == (2,) and output.values.isnan().all()
    assert torch.equal(output.logits, expected.logits)
    assert not self_test(policy).broken


def test_an_unknown_critic_is_refused_with_the_known_ones(build):
    with pytest.raises(ValueError, match="attention_pool"):
        build(value_head="mean")


def test_gradient_checkpointing_gives_the_same_gradients(build, make_inputs):
    gradients = []
    for checkpointing in (False, True):
        policy = build(gradient_checkpointing=checkpointing).train()
        policy.network(make_inputs(policy, [0, 1])).logits.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in trainable(policy).items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_bfloat16_weights_keep_what_is_trained_in_float32_and_stay_close(build, make_inputs):
    reduced, exact = build(dtype="bfloat16"), build()
    inputs = make_inputs(exact, [0, 1])
    output = reduced.network(inputs)
    assert {parameter.dtype for parameter in trainable(reduced).values()} == {torch.float32}
    frozen = [parameter for parameter in reduced.parameters() if not parameter.requires_grad]
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}
    assert output.logits.dtype == output.values.dtype == torch.float32
    assert (output.logits - exact.network(inputs).logits).abs().mean() < 0.05
    output.logits.square().mean().backward()
    assert reduced.action_rows.grad is not None and reduced.action_rows.grad.abs().sum() > 0


def test_mixed_precision_around_float32_weights_takes_effect_and_keeps_float32_outputs(build, make_inputs):
    policy = build()
    inputs = make_inputs(policy, [0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = policy.network(inputs)
    exact = policy.network(inputs)
    assert mixed.logits.dtype == mixed.values.dtype == torch.float32
    assert 1e-3 < (mixed.logits - exact.logits).abs().mean() < 0.1
    mixed.logits.square().mean().backward()
    assert policy.action_rows.grad.abs().sum() > 0


def test_reduced_precision_never_touches_the_rotary_table(build):
    reduced, exact = build(dtype="bfloat16"), build()
    tables = [policy.model.language_model.model.rotary_emb.inv_freq for policy in (reduced, exact)]
    assert tables[0].dtype == torch.float32 and torch.equal(*tables)


@torch.no_grad()
def test_an_empty_policy_that_is_given_the_parameters_answers_like_the_full_one(build, make_inputs):
    full, empty = build(), build(empty=True)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert not any(buffer.is_meta for buffer in empty.buffers())
    flags = [[(n, p.requires_grad, p.dtype, p.shape) for n, p in policy.named_parameters()] for policy in (full, empty)]
    assert flags[0] == flags[1]
    assign_parameters(empty, dict(full.named_parameters()))
    assert [(n, p.requires_grad) for n, p in empty.named_parameters()] == [(n, g) for n, g, _, _ in flags[0]]
    inputs = make_inputs(full, [0, 1])
    expected, actual = full.network(inputs), empty.network(inputs)
    assert torch.equal(actual.logits, expected.logits) and torch.equal(actual.values, expected.values)


def test_assigned_tensors_are_shared_not_copied(build):
    full, empty = build(), build(empty=True)
    assign_parameters(empty, dict(full.named_parameters()))
    with torch.no_grad():
        full.action_rows.add_(1.0)
    assert torch.equal(empty.action_rows, full.action_rows)


def test_missing_unknown_and_misshapen_tensors_are_refused_by_name_and_nothing_is_assigned(build):
    policy = build(empty=True)
    tensors = {name: torch.zeros(parameter.shape) for name, parameter in policy.named_parameters()}
    tensors["action_rows"] = torch.zeros(255, 64)
    tensors["extra"] = tensors.pop("model.projector.fc1.bias")
    with pytest.raises(ValueError, match=r"missing: model.projector.fc1.bias; unknown: extra; action_rows: shape"):
        assign_parameters(policy, tensors)
    assert all(parameter.is_meta for parameter in policy.parameters())


def test_the_same_seed_gives_the_same_policy_and_another_seed_another(build):
    first, again, other = (dict(build(seed=seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(parameter, again[name]) for name, parameter in first.items())
    drawn = [
        name for name in first if not name.endswith(".bias") and "lora_B" not in name and "value_head.norm" not in name
    ]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_building_leaves_the_global_random_state_alone(build):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    build()
    assert torch.equal(torch.rand(3), expected)


def test_tokens_become_libero_commands_of_the_suite(build):
    policy = build(suite="libero_spatial")
    tokens = np.full((2, 56), 128, dtype=np.int16)  # the middle of every range
    tokens[1, 13] = 1  # gripper of the second control step: open
    tokens[1, 7] = 255  # first component of that step: the lowest centre
    actions = policy.decode_tokens(tokens, np.array([0, 0]))
    assert actions.shape == (2, 8, 7) and actions.dtype == np.float32
    middle = [(-0.74547321 + 0.9375) / 2, (-0.66160715 + 0.87589288) / 2, (-0.9375 + 0.93214285) / 2]
    np.testing.assert_allclose(actions[0, 0, :3], middle, atol=1e-6)
    assert actions[0, :, 6].tolist() == [1.0] * 8  # the middle is below one half: closed
    assert actions[1, :, 6].tolist() == [1.0, -1.0] + [1.0] * 6
    lowest = 0.5 * (1 - 0.99607843) * (0.9375 + 0.74547321) - 0.74547321
    assert actions[1, 1, 0] == pytest.approx(lowest, abs=1e-6)


def test_proprioception_is_scaled_by_the_quantiles_and_clipped(build):
    policy = build()
    quantiles = policy.statistics.proprio
    span = quantiles.q99 - quantiles.q01
    states = np.stack([quantiles.q01, quantiles.q01 + 0.75 * span, quantiles.q99 + span, quantiles.q01 - span])
    scaled = policy._normalized_proprio(torch.from_numpy(states).float())
    expected = torch.tensor([-1.0, 0.5, 1.0, -1.0])[:, None].expand(4, 8)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-4)


def test_frames_of_another_shape_or_type_are_refused(build, make_inputs):
    policy = build()
    inputs = make_inputs(policy, [0])
    with pytest.raises(ValueError, match=r"uint8 of shape \(B, 1, 28, 28, 3\)"):
        policy.network(PolicyInputs(inputs.frames[:, :, :14], inputs.state, inputs.task_index))
    with pytest.raises(ValueError, match="float32"):
        policy.network(PolicyInputs(inputs.frames.float(), inputs.state, inputs.task_index))


def test_names_of_adapted_layers_lead_back_to_the_checkpoint(build):
    adapted, plain = build(), build(lora=None)
    names = {checkpoint_name(name) for name, _ in adapted.named_parameters() if "lora_" not in name}
    assert names == {name for name, _ in plain.named_parameters()}


def test_adapters_stay_off_everything_but_the_chosen_layers(build):
    policy = build(lora=LoraSection(rank=2, targets=["q_proj"]))
    adapted = {name.rsplit(".", 3)[0] for name, _ in policy.named_parameters() if "lora_" in name}
    assert adapted == {f"model.language_model.model.layers.{layer}.self_attn.q_proj" for layer in range(3)}


@pytest.mark.parametrize("rank", [2, 16])
def test_adapters_start_gaussian_with_deviation_one_over_rank_and_without_effect(build, rank):
    policy = build(lora=LoraSection(rank=rank))
    first = torch.cat([parameter.flatten() for name, parameter in policy.named_parameters() if "lora_A" in name])
    assert first.std().item() == pytest.approx(1 / rank, rel=0.05)
    assert not any(parameter.any() for name, parameter in policy.named_parameters() if "lora_B" in name)


def test_an_unknown_target_of_adapters_is_refused_with_a_hint_at_what_trains_it():
    recipe = (
        "name: vla\nenv: {name: libero, suite: libero_goal}\nsurrogate: {name: gipo}\nbudget: {optimizer_steps: 1}\n"
    )
    with pytest.raises(RecipeError) as refused:
        build_recipe(recipe + "policy: {name: openvla_oft, lora: {targets: [q_proj, lm_head]}}\n")
    (problem,) = refused.value.problems
    assert problem.path == "policy.lora.targets" and "q_proj, k_proj" in problem.allowed
    assert "policy.train_action_rows=true" in problem.hint


def test_scaling_of_adapters_is_alpha_over_rank(build, make_inputs):
    one, two = build(lora=LoraSection(rank=4, alpha=4.0)), build(lora=LoraSection(rank=4, alpha=8.0))
    inputs = make_inputs(one, [0])
    with torch.no_grad():
        for policy, scale in ((one, 1.0), (two, 0.5)):
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.01 * scale)
        assert (one.network(inputs).logits - build().network(inputs).logits).abs().max() > 1e-3
        torch.testing.assert_close(one.network(inputs).logits, two.network(inputs).logits, atol=2e-5, rtol=0)


def test_the_self_test_finds_nothing_but_untrained_rows_in_a_random_model(build):
    findings = self_test(build())
    assert findings.broken == [] and "look untrained" in findings.untrained


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_self_test_passes_rows_that_prefer_some_bins(build, dtype):
    policy = build(dtype=dtype)
    with torch.no_grad():
        policy.action_rows.mul_(20.0)
    assert self_test(policy) == Findings([], "")


def noisy_causal(monkeypatch, model, noise):
    """Make attention causal, with a rounding error of that relative size on every hidden."""
    llama = model.language_model.model
    monkeypatch.setattr(llama.config, "is_causal", True)

    def forward(embeddings, attend):
        hidden = llama(inputs_embeds=embeddings, use_cache=False, is_causal=True).last_hidden_state
        return hidden * (1.0 + noise * torch.randn_like(hidden))

    monkeypatch.setattr(model.language_model, "forward", forward)


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_the_self_test_notices_causal_attention_through_noise(build, monkeypatch, noise):
    policy = build()
    noisy_causal(monkeypatch, policy.model, noise)
    assert any("attention is causal" in finding for finding in self_test(policy).broken)


def test_a_first_position_that_looks_at_nothing_is_no_causal_attention(build, monkeypatch):
    policy = build()
    language_model = policy.model.language_model
    plain_forward = language_model.forward

    def forward(embeddings, attend):
        hidden = plain_forward(embeddings, attend)
        hidden[:, 0] = 1.0  # an attention sink
        return hidden

    monkeypatch.setattr(language_model, "forward", forward)
    assert self_test(policy).broken == []


@torch.no_grad()
def test_layers_without_weights_are_not_taken_for_causal_attention(build):
    policy = build()
    for parameter in policy.model.language_model.model.layers.parameters():
        parameter.zero_()
    (fault,) = self_test(policy).broken
    assert "weights look incomplete" in fault and "causal" not in fault


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("model.vision_backbone.featurizer.blocks.1.mlp.fc1.bias", "hiddens"),
        ("model.language_model.model.layers.2.mlp.up_proj.base_layer.weight", "hiddens"),
        ("model.proprio_projector.fc2.bias", "logits"),
        ("action_rows", "logits"),
        ("value_head.score.bias", "values"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@torch.no_grad()
def test_the_self_test_names_the_weight_that_makes_answers_not_finite(build, name, outputs, value):
    policy = build()
    policy.get_parameter(name).view(-1)[0] = value
    (fault,) = self_test(policy).broken
    told = name.removeprefix("model.") if outputs == "hiddens" else name  # of the network, or of the whole policy
    assert fault.startswith(f"its {outputs} are not finite, nor is the weight {told}. ")


@torch.no_grad()
def test_the_self_test_tells_an_overflow_from_damaged_weights(build):
    policy = build()
    policy.model.language_model.model.norm.weight.fill_(3e38)
    (fault,) = self_test(policy).broken
    assert "its hiddens are not finite although every weight is" in fault


def test_the_self_test_notices_images_without_effect(build):
    policy = build()
    with torch.no_grad():
        policy.model.projector.fc3.weight.zero_()
    assert ["images do not matter: white and black images" in finding for finding in self_test(policy).broken] == [True]


def test_the_self_test_names_the_camera_that_is_not_looked_at(build, monkeypatch):
    policy = build(num_images=2)
    look = policy.model.vision_features
    monkeypatch.setattr(
        policy.model, "vision_features", lambda pixels: look(pixels[:, :6].repeat(1, pixels.shape[1] // 6, 1, 1))
    )
    assert ["another image of camera 1 gives" in finding for finding in self_test(policy).broken] == [True]


def test_dropout_of_adapters_acts_in_training_and_not_in_evaluation(build, make_inputs):
    policy = build(lora=LoraSection(rank=4, dropout=0.5))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    inputs = make_inputs(policy, [0])
    with torch.no_grad():
        training = [policy.train().network(inputs).logits for _ in range(2)]
        evaluation = [policy.eval().network(inputs).logits for _ in range(2)]
    assert not torch.equal(*training)
    assert torch.equal(*evaluation)


@pytest.mark.parametrize(
    "setting", [{"rank": 0}, {"rank": -1}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}, {"targets": []}]
)
def test_settings_of_adapters_that_adapt_nothing_are_refused_by_name(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        LoraSection(**setting)


def test_weights_that_are_trained_themselves_are_float32_and_move_by_a_small_step(build, make_inputs):
    policy = build(lora=None, train_backbone=True, dtype="bfloat16")
    dtypes = {name: parameter.dtype for name, parameter in policy.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype != torch.float32} == {"model.language_model.lm_head.weight"}
    assert policy.model.dtype == torch.float32
    weight = policy.model.get_parameter("language_model.model.layers.0.mlp.up_proj.weight")
    before = weight.detach().clone()
    output = policy.network(make_inputs(policy, [0]))
    output.logits.square().mean().backward()
    torch.optim.SGD([weight], lr=1e-3 / float(weight.grad.abs().max())).step()
    moved = (weight - before).abs().max().item()
    assert moved == pytest.approx(1e-3, rel=1e-3)  # a step that bfloat16 would round to a multiple of the last bit


def test_the_embeddings_of_words_can_stay_as_they_are_while_every_other_weight_is_trained(build):
    def trained(**choices: bool) -> set[str]:
        policy = build(lora=None, train_backbone=True, **choices)
        return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}

    assert trained() - trained(train_embeddings=False) == {"model.language_model.model.embed_tokens.weight"}


@torch.no_grad()
def test_a_row_of_padding_alone_is_refused(build):
    model, ids = build(proprio=False).model, torch.tensor([[1, 5, 7], [1, 5, 7]])
    with pytest.raises(ValueError, match=r"hides the whole prompt of row\(s\) \[1\]"):
        model.action_hidden(torch.zeros(2, 6, 28, 28), ids, torch.tensor([[1, 1, 1], [0, 0, 0]]))


@pytest.mark.slow
@torch.no_grad()
def test_torch_compile_takes_the_whole_forward_pass_and_gives_the_same_outputs(build, make_inputs):
    policy = build(num_images=2).eval()
    compiled = CompiledForward(policy, max_batch=2, backend="aot_eager")
    for tasks in ([0, 1], [2, 2]):
        inputs = make_inputs(policy, tasks)
        expected, actual = policy.network(inputs), TokenOutput(*compiled(inputs))
        torch.testing.assert_close(actual.logits, expected.logits, atol=5e-5, rtol=0)
        torch.testing.assert_close(actual.values, expected.values, atol=5e-5, rtol=0)
        policy.action_rows.add_(0.1)
