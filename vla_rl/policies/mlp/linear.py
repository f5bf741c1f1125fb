"""Linear layer whose large products on a CPU are computed by oneDNN, in float32.

torch gives float32 products to MKL, which uses half the width of an AMD processor's vector units; oneDNN takes half
the time there and the same elsewhere. Both sum in float32, in a different order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MIN_ROWS, MIN_OUTPUTS = 32, 32
"""Sizes below which oneDNN's overhead, about 10 µs for each product, outweighs the gain."""


class Linear(nn.Linear):
    """`torch.nn.Linear` for rows of features, (R, in) to (R, out).

    Results and gradients of oneDNN differ from torch's own by rounding alone: at most 1e-5 of the largest number.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` times the weight, plus the bias."""
        if self._suits_onednn(input):
            return _OneDNNLinear.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]
        return super().forward(input)

    def _suits_onednn(self, rows: Tensor) -> bool:
        return (
            rows.dim() == 2
            and len(rows) >= MIN_ROWS
            and self.out_features >= MIN_OUTPUTS
            and rows.device.type == "cpu"
            and rows.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
        )


class _OneDNNLinear(torch.autograd.Function):
    """Product with a weight matrix, and its gradients, which are two more products."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type is not public
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        rows, weight = ctx.saved_tensors
        of_rows = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        return of_rows, _product(gradient.t(), rows.t()), gradient.sum(dim=0)


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left · rightᵀ + bias. The operator is the one that torch.compile uses for a linear layer."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # type: ignore[no-any-return]
