"""Hidden layer of the perceptron: numbers and gradients of its three layers in turn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vla_rl.policies.mlp import block as module
from vla_rl.policies.mlp import linear
from vla_rl.policies.mlp.block import Block

SHAPES = [(408, 39, 128), (33, 64, 64), (4, 128, 64)]  # the last one is left to torch


def block_of(num_inputs: int, num_outputs: int) -> tuple[Block, nn.Sequential]:
    """Return a layer, and torch's own three in float64 with the same weights."""
    torch.manual_seed(0)
    ours = Block(num_inputs, num_outputs)
    reference = nn.Sequential(nn.Linear(num_inputs, num_outputs), nn.ReLU(), nn.LayerNorm(num_outputs)).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape))
    reference.load_state_dict(ours.state_dict())
    return ours, reference


def output_and_gradients(layer: nn.Sequential, rows: Tensor, gradient: Tensor) -> list[Tensor]:
    parameters = list(layer.parameters())
    rows = rows.to(parameters[0].dtype).requires_grad_()
    output = layer(rows)
    return [output, *torch.autograd.grad(output, [rows, *parameters], gradient.to(output.dtype))]


@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_and_gradients_are_those_of_the_three_layers(shape: tuple[int, int, int]) -> None:
    num_rows, num_inputs, num_outputs = shape
    ours, reference = block_of(num_inputs, num_outputs)
    rows, gradient = torch.randn(num_rows, num_inputs), torch.randn(num_rows, num_outputs)
    found, expected = (output_and_gradients(layer, rows, gradient) for layer in (ours, reference))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_parameters_keep_the_names_of_the_layers() -> None:
    """Checkpoints hold them."""
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [name for name, _ in Block(4, 32).named_parameters()] == names


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_hook_on_a_layer_is_called(layer: int) -> None:
    """ZeRO-3 fetches weights by such hooks."""
    ours, called = Block(8, 32), list[int]()
    before = ours(torch.ones(40, 8))
    ours[layer].register_forward_pre_hook(lambda *_: called.append(layer))
    torch.testing.assert_close(ours(torch.ones(40, 8)), before)
    assert called == [layer]


def test_large_products_are_one_step_of_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    product = module.product
    monkeypatch.setattr(module, "product", lambda *given, **named: taken.append(given) or product(*given, **named))
    ours = Block(8, 32)
    assert type(ours(torch.ones(32, 8)).grad_fn).__name__ == "_OneDNNBlockBackward"
    for rows in (torch.ones(31, 8), torch.ones(2, 16, 8)):
        ours(rows)
    assert len(taken) == 1


@pytest.mark.parametrize("num_rows", [8, 64])
def test_nan_stays_nan(num_rows: int) -> None:
    """Whoever acts or learns from it refuses it."""
    ours, rows = Block(8, 32), torch.ones(num_rows, 8)
    rows[3, 5] = torch.nan
    is_nan = ours(rows).isnan()
    assert is_nan[3].all() and not is_nan[:3].any()


def test_rows_that_need_no_gradient_cost_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Block(8, 32)(torch.ones(32, 8))
    monkeypatch.setattr(linear, "product", None)
    output.sum().backward()
