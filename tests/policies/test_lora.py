"""The adapters against peft's own."""

import copy
import weakref

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vla_rl.policies.devices import free_failed_pass
from vla_rl.policies.lora import add_adapters, fill_adapters, is_adapter
from vla_rl.policies.lora_section import LoraSection
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


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "down_proj"]])
def test_outputs_and_gradients_are_pefts(targets):
    ours, theirs = adapted_pair(LoraSection(rank=4, alpha=3.0, targets=targets))
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
    ours, theirs = adapted_pair(LoraSection(rank=4, alpha=3.0, targets=["q_proj", "down_proj"]), dtype=torch.bfloat16)
    x = torch.randn(2, 5, 24).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second = ours(x), theirs(x)
    assert first.dtype == second.dtype == torch.bfloat16
    assert ours.q_proj.lora_A["default"].weight.dtype == torch.float32
    torch.testing.assert_close(first, second, atol=2 * 2**-8 * second.detach().abs().max().item(), rtol=0)


def test_dropout_acts_on_the_adapters_input_in_training_alone():
    ours, theirs = adapted_pair(LoraSection(rank=4, dropout=0.5, targets=["q_proj"]))
    x = torch.randn(2, 5, 24)
    dropped = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        dropped.append(model.train()(x))
    torch.testing.assert_close(*dropped, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-6, rtol=0)
    assert (dropped[0] - ours(x)).abs().max() > 1e-3


def test_the_result_is_added_in_the_memory_of_the_layers_own_with_gradients_and_without():
    ours, _ = adapted_pair(LoraSection(rank=4, targets=["q_proj"]))
    x = torch.randn(10, 24)
    expected = ours.q_proj(x).detach()
    add = ours.q_proj.lora_B["default"]
    for with_gradient in (False, True):
        with torch.set_grad_enabled(with_gradient):
            low, result = ours.q_proj.lora_A["default"](x), ours.q_proj.base_layer(x)
            address = result.data_ptr()
            added = add(low, result)
        assert added.data_ptr() == address
        torch.testing.assert_close(added.detach(), expected, atol=1e-6, rtol=0)


def test_a_view_that_autograd_may_not_see_changed_is_left_alone():
    """ZeRO-3 puts such views between the layers."""
    ours, _ = adapted_pair(LoraSection(rank=4, targets=["q_proj"]))
    x, result = torch.randn(10, 24), torch.randn(10, 40, requires_grad=True)
    view = result.view(10, 40)
    added = ours.q_proj.lora_B["default"](ours.q_proj.lora_A["default"](x), view)
    assert added.data_ptr() != result.data_ptr()
    added.sum().backward()
    assert result.grad is not None
    assert torch.equal(result.grad, torch.ones(10, 40))


class Attention(nn.Module):
    """The projections of one input, named as Llama's."""

    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, nn.Linear(24, 40, bias=False))

    def forward(self, x):
        return torch.tanh(self.q_proj(x)) * self.k_proj(x) + self.v_proj(x)


def adapted_attention(**settings):
    torch.manual_seed(3)
    module = Attention()
    add_adapters(module, LoraSection(rank=4, alpha=3.0, targets=["q_proj", "k_proj", "v_proj"], **settings))
    fill_adapters(module, seed=0, device=torch.device("cpu"))
    for name, parameter in list(module.named_parameters()):
        if "lora_B" in name:
            set_parameter(module, name, 0.1 * torch.randn(parameter.shape))
        module.get_parameter(name).requires_grad_(is_adapter(name))
    return module


def by_hand(module, x):
    """W x + alpha / r B A x of every projection, from the formula."""

    def project(layer):
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        return x @ (layer.base_layer.weight + 3.0 / 4 * update).t()

    return torch.tanh(project(module.q_proj)) * project(module.k_proj) + project(module.v_proj)


def products(function):
    """Matrix products that a call runs."""

    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            self.number += operation.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
            return operation(*args, **(kwargs or {}))

    with Count() as count:
        function()
    return count.number


def test_projections_of_one_input_multiply_it_by_all_their_a_at_once_with_the_outputs_and_gradients_of_the_formula():
    module, x = adapted_attention(), torch.randn(2, 5, 24)
    assert products(lambda: module(x)) == 3 + 1 + 3  # W, A, B
    reference = copy.deepcopy(module)
    output, expected = module(x), by_hand(reference, x)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
    for each in (output, expected):
        each.square().sum().backward()
    for name, parameter in module.named_parameters():
        if is_adapter(name):
            torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, atol=1e-5, rtol=1e-5)


def test_shared_products_follow_weights_that_are_changed_in_place_and_outlive_no_pass():
    module, x = adapted_attention(), torch.randn(2, 5, 24)
    with torch.no_grad():
        module(x)
        for layer in (module.q_proj, module.k_proj, module.v_proj):
            layer.lora_A["default"].weight.mul_(-2.0)  # as the mailbox does between two passes
        torch.testing.assert_close(module(x), by_hand(module, x), atol=1e-6, rtol=0)
        alone = module.k_proj(x)
        module.k_proj.lora_A["default"].weight.zero_()
        assert not torch.equal(module.k_proj(x), alone)
    kept = weakref.ref(x)
    module(x)
    del x
    assert kept() is None


def test_a_product_without_gradients_is_not_used_by_a_pass_with_them():
    module, x = adapted_attention(), torch.randn(2, 5, 24)
    with torch.no_grad():
        module.q_proj(x)
    module.k_proj(x).sum().backward()
    assert module.k_proj.lora_A["default"].weight.grad.abs().sum() > 0


class Saved:
    """What autograd saved for the backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()  # of the tensor itself, an output would hold its own graph


@pytest.mark.parametrize("with_gradient", [False, True])
def test_a_pass_that_failed_between_projections_of_one_input_can_be_freed(monkeypatch, with_gradient):
    """Else the memory that ran out stays in use, and another attempt begins with less than the first."""
    module = adapted_attention()
    kept: list[weakref.ref[object]] = []

    def fail(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def save(tensor):
        saved = Saved(tensor)
        kept.append(weakref.ref(saved))
        return saved

    def attempt():
        saving = torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.tensor)
        with torch.set_grad_enabled(with_gradient), saving:
            x = torch.tanh(torch.randn(2, 5, 24, requires_grad=True))  # an earlier layer
            kept.append(weakref.ref(x))
            module(x)

    monkeypatch.setattr(module.k_proj.base_layer, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        attempt()
    free_failed_pass(module)
    assert len(kept) > (2 if with_gradient else 0)
    assert [it for it in kept if it() is not None] == []
    monkeypatch.undo()
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(module(x), by_hand(module, x), atol=1e-6, rtol=0)


def test_with_dropout_every_projection_drops_on_its_own():
    """As in peft: one shared product would give all three the same mask."""
    module, x = adapted_attention(dropout=0.5), torch.randn(2, 5, 24)
    assert products(lambda: module(x)) == 3 + 3 + 3
    torch.manual_seed(1)
    masks = [layer.dropout(torch.ones(10, 24)) for layer in (module.q_proj, module.k_proj, module.v_proj)]
    torch.manual_seed(1)
    output = module(x)
    projected = [
        x @ layer.base_layer.weight.t()
        + 3.0
        / 4
        * ((x.flatten(0, 1) * mask) @ layer.lora_A["default"].weight.t()).view(2, 5, 4)
        @ layer.lora_B["default"].weight.t()
        for layer, mask in zip((module.q_proj, module.k_proj, module.v_proj), masks, strict=True)
    ]
    expected = torch.tanh(projected[0]) * projected[1] + projected[2]
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)


def test_state_names_stay_pefts():
    names = {name for name, _ in adapted_attention().named_parameters()}
    parts = ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
    assert names == {f"{layer}.{part}" for layer in ("q_proj", "k_proj", "v_proj") for part in parts}
