"""Hidden layer of the perceptron: product, ReLU and layer norm, on a CPU as one step of the backward pass.

With layers of a hundred units autograd's bookkeeping takes as long as the arithmetic, so there is one entry of it for a
hidden layer instead of three.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vla_rl.policies.mlp.linear import Linear, gradients, product


class Block(nn.Sequential):
    """Linear layer, ReLU and layer norm, (R, in) to (R, out); numbers and gradients are those of the three in turn."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(Linear(in_features, out_features), nn.ReLU(), nn.LayerNorm(out_features))

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised features of rows."""
        linear, relu, norm = self
        assert isinstance(linear, Linear)
        assert isinstance(norm, nn.LayerNorm)
        # ZeRO-3 fetches a layer's weights when that layer is called, by a hook.
        has_hooks = any(layer._forward_pre_hooks or layer._forward_hooks for layer in (linear, relu, norm))
        if has_hooks or not linear.suits_onednn(input):
            return super().forward(input)  # type: ignore[no-any-return]
        return _OneDNNBlock.apply(  # type: ignore[no-any-return]
            input, linear.weight, linear.bias, norm.weight, norm.bias, norm.eps
        )


class _OneDNNBlock(torch.autograd.Function):
    """Product by oneDNN, ReLU and layer norm, and the gradients of all three."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type is not public
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor,
        shift: Tensor,
        eps: float,
    ) -> Tensor:
        active = product(rows, weight, bias).relu_()  # oneDNN's own would make 0 of NaN
        normed, mean, rstd = torch.native_layer_norm(active, [len(weight)], scale, shift, eps)
        ctx.save_for_backward(rows, weight, active, mean, rstd, scale, shift)
        return normed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, None]:
        rows, weight, active, mean, rstd, scale, shift = ctx.saved_tensors
        of_active, of_scale, of_shift = torch.ops.aten.native_layer_norm_backward(
            gradient.contiguous(), active, [len(weight)], mean, rstd, scale, shift, [True, True, True]
        )
        of_product = torch.ops.aten.threshold_backward(of_active, active, 0)
        return *gradients(of_product, rows, weight, with_rows=ctx.needs_input_grad[0]), of_scale, of_shift, None
