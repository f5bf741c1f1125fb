"""The formula for activations against what autograd keeps."""

import dataclasses

import pytest
import torch

from vla_rl.policies.lora_section import LLAMA_LINEARS, LoraSection
from vla_rl.policies.openvla_oft import tiny
from vla_rl.policies.openvla_oft.config import LlamaDims, OFTConfig
from vla_rl.policies.openvla_oft.memory import activation_memory, llama_layer_bytes

WIDE = LlamaDims(
    hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4
)


def kept_by_autograd(policy, inputs):
    """Bytes of the distinct storages saved for the backward pass, parameters excluded."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept = {}  # the tensors too, so that no address is used twice

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = policy.network(inputs)
    del output
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), LLAMA_LINEARS])
def test_the_formula_is_what_autograd_keeps(build, make_inputs, tasks, monkeypatch, dtype, targets):
    config = dataclasses.replace(tiny.tiny_config(image_size=112), llama=WIDE)
    monkeypatch.setattr(tiny, "tiny_config", lambda **_: config)
    policy = build(
        image_size=112, dtype=dtype, tasks=tasks[:1], lora=LoraSection(rank=2, targets=list(targets))
    ).train()
    inputs = make_inputs(policy, [0, 0])
    num_tokens = 1 + 64 + 1 + int(policy.prompt_lengths[0]) - 1 + 56 + 1
    layer = llama_layer_bytes(WIDE, bytes_per_value=2 if dtype == "bfloat16" else 4, kept=targets)
    assert kept_by_autograd(policy, inputs) == pytest.approx(2 * 4 * num_tokens * layer, rel=0.1)


def test_the_7b_model_keeps_what_the_field_reports():
    """OpenVLA-OFT's own notes come to 5.3 GB per sample of two images; here it takes 32 · 599 · (22 d + 8 m) bytes."""

    def bytes_of(**changes):
        defaults = {
            "num_tokens": 599, "num_images": 2, "bytes_per_value": 2, "adapted": LLAMA_LINEARS,
            "train_backbone": False, "gradient_checkpointing": False,
        }  # fmt: skip
        return activation_memory(OFTConfig(), **{**defaults, **changes}).training

    assert bytes_of() == pytest.approx(33 / 32 * 3.415e9, rel=0.01)
    assert bytes_of(gradient_checkpointing=True) == pytest.approx(0.157e9 + 2 * 3.415e9 / 32, rel=0.02)
    assert bytes_of(train_backbone=True) > bytes_of()
