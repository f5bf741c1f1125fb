"""Random weights of the real size, on networks of its depth but a sixteenth of its width."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from vla_rl.policies.openvla_oft import OpenVLAOFT, random_weights, source
from vla_rl.policies.openvla_oft.checkpoint_reader import empty_model
from vla_rl.policies.openvla_oft.config import LlamaDims
from vla_rl.policies.openvla_oft.profiles import PROFILES
from vla_rl.policies.openvla_oft.random_weights import fill_well_conditioned
from vla_rl.policies.openvla_oft.self_test import network_faults
from vla_rl.policies.openvla_oft.source import RANDOM_7B, Source
from vla_rl.policies.openvla_oft.tiny import fill_randomly, tiny_config

CPU = torch.device("cpu")
ROWS = 6


def network(*, depth, width, fill=fill_well_conditioned, dtype=torch.bfloat16, seed=0):
    """A network with `depth` layers of the language model, filled."""
    dims = LlamaDims(
        hidden_size=width,
        intermediate_size=width * 43 // 16,  # as 11008 of 4096
        num_hidden_layers=depth,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
    )
    config = dataclasses.replace(tiny_config(), llama=dims)
    model = empty_model(OpenVLAOFT, config, PROFILES["simplevla"], proprio=False, l1_head=False, dtype=dtype)
    fill(model, seed=seed, device=CPU)
    return model.eval()


def log_probabilities(model, *, bf16):
    """(ROWS, 56, 256), of random pictures and prompts."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(ROWS, 6, 112, 112, generator=generator)
    prompts = torch.randint(3, 31000, (ROWS, 22), generator=generator)
    prompts[:, 0], prompts[:, -1] = 1, 29871
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return model.action_logits(model.action_hidden(pictures, prompts)).log_softmax(dim=-1)


def lag0_noise(fill):
    """|Δ log p| of drawn tokens between bfloat16 and float32 arithmetic on the same bfloat16 weights.

    Returned are its 95 % quantile, the mean over decisions of a whole chunk's |Δ log p|, and the entropy per token.
    Both sides of a run round in bfloat16, so they differ by about √2 of this where their rounding is independent.
    """
    model = network(depth=32, width=256, fill=fill)
    rounded, exact = log_probabilities(model, bf16=True), log_probabilities(model.float(), bf16=False)
    drawn = torch.multinomial(rounded.exp().flatten(0, 1), 1, generator=torch.Generator().manual_seed(2))
    change = (rounded - exact).flatten(0, 1).gather(-1, drawn).view(ROWS, -1)
    entropy = -(rounded.exp() * rounded).sum(-1).mean()
    return change.abs().flatten().quantile(0.95).item(), change.sum(1).abs().mean().item(), entropy.item()


def test_rounding_changes_log_probabilities_as_little_as_in_a_well_conditioned_network():
    p95, joint, entropy = lag0_noise(fill_well_conditioned)
    assert 0.02 < p95 < 0.06 and joint < 0.16
    assert 4.9 < entropy < 5.3  # of at most log 256 = 5.5: not uniform, not decided


def test_the_tiny_models_weights_would_amplify_rounding_at_that_depth():
    """Why deep networks have a rule of their own."""
    p95, joint, _ = lag0_noise(fill_randomly)
    assert p95 > 0.25 and joint > 1.0


def test_a_deep_network_of_such_weights_has_no_fault_and_looks_at_pictures():
    model = network(depth=8, width=64, dtype=torch.float32)
    assert network_faults(model) == []


def test_every_branch_ends_divided_by_the_root_of_their_number():
    model = network(depth=8, width=128, dtype=torch.float32)
    layer = model.language_model.model.layers[3]
    for weight, expected in (
        (layer.self_attn.o_proj.weight, 1 / math.sqrt(128 * 16)),  # 8 layers with two branches each
        (layer.mlp.down_proj.weight, 1 / math.sqrt(344 * 16)),
        (layer.mlp.gate_proj.weight, 1 / math.sqrt(128)),
        (layer.self_attn.q_proj.weight, 1 / math.sqrt(128)),
        (model.vision_backbone.featurizer.blocks[0].mlp.fc2.weight, 1 / math.sqrt(128 * 4)),  # two blocks
        (model.vision_backbone.featurizer.blocks[0].attn.proj.weight, 1 / math.sqrt(32 * 4)),
        (model.language_model.model.embed_tokens.weight, 1.0),
    ):
        assert weight.std().item() == pytest.approx(expected, rel=0.08)
    assert (layer.input_layernorm.weight == 1).all()
    assert (model.vision_backbone.featurizer.blocks[0].attn.qkv.bias == 0).all()
    assert (model.vision_backbone.featurizer.blocks[0].ls1.scale_factor == 1).all()


def test_weights_depend_on_seed_and_name_and_not_on_the_number_of_cores(monkeypatch):
    first = dict(network(depth=2, width=64).named_parameters())
    monkeypatch.setattr(random_weights, "usable_cores", lambda: 7)
    again = dict(network(depth=2, width=64).named_parameters())
    deeper_seed = dict(network(depth=2, width=64, seed=1).named_parameters())
    assert all(torch.equal(parameter, again[name]) for name, parameter in first.items())
    matrices = [name for name, parameter in first.items() if parameter.dim() > 1]
    assert not any(torch.equal(first[name], deeper_seed[name]) for name in matrices)
    one, other = (first[f"language_model.model.layers.{layer}.mlp.up_proj.weight"] for layer in (0, 1))
    assert not torch.equal(one, other)


def test_random_7b_is_drawn_where_it_is_told_to_and_then_moved(monkeypatch):
    asked = []
    monkeypatch.setattr(source, "fill_well_conditioned", lambda model, **asks: asked.append(asks))
    real = Source(RANDOM_7B, tiny_config(), PROFILES["simplevla"], proprio=False, files=None)
    real.fill(real.empty_network(OpenVLAOFT, dtype=torch.bfloat16), seed=3, device=CPU, draw_on=torch.device("cuda:1"))
    assert asked == [{"seed": 3, "device": CPU, "draw_on": torch.device("cuda:1")}]


def test_the_generator_is_the_drawing_devices(monkeypatch):
    devices = []

    def generator(seed, name, *, device):
        devices.append(device)
        return torch.Generator().manual_seed(0)

    monkeypatch.setattr(random_weights, "named_generator", generator)
    model = empty_model(
        OpenVLAOFT, tiny_config(), PROFILES["simplevla"], proprio=False, l1_head=False, dtype=torch.float32
    )
    fill_well_conditioned(model, seed=0, device=CPU, draw_on=torch.device("cuda:1"))
    assert set(devices) == {torch.device("cuda:1")}
    assert {parameter.device for parameter in model.parameters()} == {CPU}
    assert np.isfinite(sum(parameter.float().sum().item() for parameter in model.parameters()))
