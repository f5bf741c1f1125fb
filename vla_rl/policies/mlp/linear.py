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


_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """`torch.nn.Linear` for rows of features, (R, in) to (R, out).

    Results and gradients of oneDNN differ from torch's own by rounding alone: at most 1e-5 of the largest number.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` times the weight, plus the bias."""
        if self.suits_onednn(input):
            return _OneDNNLinear.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]
        return super().forward(input)

    def suits_onednn(self, rows: Tensor) -> bool:
        """Return whether oneDNN computes the product with these rows."""
        return (
            self.out_features >= MIN_OUTPUTS
            and rows.dim() == 2
            and len(rows) >= MIN_ROWS
            and _HAS_ONEDNN
            and rows.device.type == "cpu"
            and rows.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
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
        return product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        rows, weight = ctx.saved_tensors
        return gradients(gradient, rows, weight, with_rows=ctx.needs_input_grad[0])


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left · rightᵀ + bias by oneDNN. The operator is the one that torch.compile uses for a linear layer."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # type: ignore[no-any-return]


def gradients(
    gradient: Tensor, rows: Tensor, weight: Tensor, *, with_rows: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of rows, weight and bias from that of `product`; None for rows that need none.

    The weight's is torch's own product: oneDNN would first copy both factors, transposed. And it is made transposed,
    (in, out), because with few inputs that takes half as long.
    """
    of_rows = product(gradient, weight.t()) if with_rows else None
    return of_rows, torch.mm(rows.t(), gradient).t(), gradient.sum(dim=0)
