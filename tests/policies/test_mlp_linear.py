"""Linear layer of the perceptron: torch's own results, exactly where sums are exact, up to rounding elsewhere."""

import pytest
import torch
from torch import nn

from vla_rl.policies.mlp import linear
from vla_rl.policies.mlp.linear import Linear

SHAPES = [(408, 39, 128), (33, 64, 64), (408, 64, 1), (4, 128, 64)]  # the last two are left to torch


def layers(shape, *, whole_numbers):
    """Return the layer and torch's own in float64 with the same weights, rows, and an incoming gradient."""
    num_rows, num_inputs, num_outputs = shape
    generator = torch.Generator().manual_seed(0)

    def numbers(*size):
        if whole_numbers:
            return torch.randint(-8, 9, size, generator=generator).float()
        return torch.randn(*size, generator=generator)

    ours, reference = Linear(num_inputs, num_outputs), nn.Linear(num_inputs, num_outputs, dtype=torch.float64)
    with torch.no_grad():
        ours.weight.copy_(numbers(num_outputs, num_inputs))
        ours.bias.copy_(numbers(num_outputs))
    reference.load_state_dict(ours.state_dict())
    return ours, reference, numbers(num_rows, num_inputs), numbers(num_rows, num_outputs)


def output_and_gradients(layer, rows, gradient):
    rows = rows.to(layer.weight.dtype).requires_grad_()
    output = layer(rows)
    return output, *torch.autograd.grad(output, [rows, layer.weight, layer.bias], gradient.to(output.dtype))


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_whole_numbers_and_their_gradients_are_exact(shape):
    ours, reference, rows, gradient = layers(shape, whole_numbers=True)
    found, expected = (output_and_gradients(layer, rows, gradient) for layer in (ours, reference))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one.double(), other)


@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_stays_below_a_hundred_thousandth_of_the_largest_number(shape):
    ours, reference, rows, gradient = layers(shape, whole_numbers=False)
    found, expected = (output_and_gradients(layer, rows, gradient) for layer in (ours, reference))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_only_large_products_leave_torch(monkeypatch):
    taken = []
    product = linear.product
    monkeypatch.setattr(linear, "product", lambda *given: taken.append(len(given[0])) or product(*given))
    layer = Linear(8, 32)
    for num_rows in (31, 32):
        layer(torch.ones(num_rows, 8))
    Linear(8, 31)(torch.ones(32, 8))
    layer.double()(torch.ones(32, 8, dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(torch.ones(32, 8)).dtype == torch.bfloat16
    assert taken == [32]


def test_rows_that_need_no_gradient_cost_no_product(monkeypatch):
    layer = Linear(8, 32)
    output = layer(torch.ones(32, 8))
    monkeypatch.setattr(linear, "product", None)
    output.sum().backward()
    assert layer.weight.grad.tolist() == [[32.0] * 8] * 32 and layer.bias.grad.tolist() == [32.0] * 32
