"""The adapters against peft's own."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from vla_rl.policies.lora import LoraSettings, add_adapters, fill_adapters, is_adapter
from vla_rl.policies.parameters import set_parameter


class Layer(nn.Module):
    """Two of Llama's layers, named as there."""

    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(24, 40, bias=False)
        self.down_proj = nn.Linear(40, 24, bias=False)

    def forward(self, x):
        return self.down_proj(torch.tanh(self.q_proj(x)))


def adapted_pair(settings, *, dtype=torch.float32):
    """The same layers and the same adapters, ours and peft's."""
    torch.manual_seed(0)
    ours = Layer().to(dtype)
    theirs = copy.deepcopy(ours)
    add_adapters(ours, settings)
    fill_adapters(ours, seed=0, device=torch.device("cpu"))
    for name, parameter in list(ours.named_parameters()):
        if "lora_B" in name:
            set_parameter(ours, name, 0.1 * torch.randn(parameter.shape))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )
    inject_adapter_in_model(config, theirs)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            reference = theirs.get_parameter(name)
            assert reference.shape == parameter.shape
            reference.data = parameter.detach().clone()
            parameter.requires_grad_(is_adapter(name))
    return ours, theirs


@pytest.mark.parametrize("targets", [("q_proj",), ("q_proj", "down_proj")])
def test_outputs_and_gradients_are_pefts(targets):
    ours, theirs = adapted_pair(LoraSettings(rank=4, alpha=3.0, targets=targets))
    x = torch.randn(2, 5, 24)
    outputs = [model(x) for model in (ours, theirs)]
    plain = [model.q_proj.base_layer(x) for model in (ours, theirs)]
    assert torch.equal(*plain)
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=0)
    for output in outputs:
        output.square().sum().backward()
    trained = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(targets)
    for name in trained:
        torch.testing.assert_close(ours.get_parameter(name).grad, theirs.get_parameter(name).grad, atol=1e-5, rtol=1e-5)


def test_float32_adapters_on_bfloat16_weights_differ_from_pefts_by_roundings_alone():
    ours, theirs = adapted_pair(LoraSettings(rank=4, alpha=3.0, targets=("q_proj", "down_proj")), dtype=torch.bfloat16)
    x = torch.randn(2, 5, 24).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second = ours(x), theirs(x)
    assert first.dtype == second.dtype == torch.bfloat16
    assert ours.q_proj.lora_A["default"].weight.dtype == torch.float32
    torch.testing.assert_close(first, second, atol=2 * 2**-8 * second.detach().abs().max().item(), rtol=0)


def test_dropout_acts_on_the_adapters_input_in_training_alone():
    ours, theirs = adapted_pair(LoraSettings(rank=4, dropout=0.5, targets=("q_proj",)))
    x = torch.randn(2, 5, 24)
    dropped = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        dropped.append(model.train()(x))
    torch.testing.assert_close(*dropped, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-6, rtol=0)
    assert (dropped[0] - ours(x)).abs().max() > 1e-3


def test_without_gradients_the_result_is_the_same_and_takes_no_memory_of_its_own():
    ours, _ = adapted_pair(LoraSettings(rank=4, targets=("q_proj",)))
    x, result = torch.randn(2, 5, 24), torch.randn(2, 5, 40)
    expected = ours.q_proj(x)
    with torch.no_grad():
        torch.testing.assert_close(ours.q_proj(x), expected, atol=1e-6, rtol=0)
        low = ours.q_proj.lora_A["default"](x)
        assert ours.q_proj.lora_B["default"](low, result).data_ptr() == result.data_ptr()
    assert ours.q_proj.lora_B["default"](low, result).data_ptr() != result.data_ptr()
