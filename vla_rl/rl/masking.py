"""Rule for masked places, shared by every loss.

A masked place is replaced by 0 *before* any arithmetic: multiplying by the mask, or selecting after an exponential,
lets 0 · NaN and 0 · inf return in the backward pass. A mean is a pair (sum, count), so that a batch may be cut into
micro-batches and ranks: add the sums, add the counts, divide once.

A non-finite number in a *valid* place raises `NonFiniteError`; it is never dropped and never propagated, because the
counts that ranks have already agreed on would no longer be correct. The check costs one device synchronisation.

Surrogates build on this module, and recipes import them, so it imports torch for type checkers only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class NonFiniteError(ValueError):
    """Valid place with a number that no loss can be computed from."""


def lift(tensor: Tensor) -> Tensor:
    """Convert half precision and integers to float32; keep float32 and float64."""
    return tensor if tensor.is_floating_point() and tensor.element_size() == 8 else tensor.float()


def all_finite(tensor: Tensor) -> bool:
    """Return whether every number of a floating-point tensor is finite."""
    # A sum is finite only if every term is, and costs a fraction; it may overflow although every term is finite.
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def select_valid(name: str, tensor: Tensor, mask: Tensor | None, *, allow_infinite: bool = False) -> Tensor:
    """Return `tensor` with 0 in masked places, in at least float32; their gradient is exactly 0.

    Args:
        name: the tensor's name in the error.
        tensor: any shape.
        mask: bool, True = valid, broadcastable with `tensor`; None: every place is valid.
        allow_infinite: accept ±inf in valid places (log-ratios, which the surrogates bound).

    Returns:
        A tensor of the broadcast shape.

    Raises:
        NonFiniteError: a valid place holds NaN, or ±inf where that is not allowed.
    """
    selected = lift(tensor) if mask is None else lift(tensor).where(mask, 0.0)
    # A sum is finite only if every term is; checking each term costs many times as much and is left for the error.
    if math.isfinite(float(selected.detach().sum())):
        return selected
    bad = selected.isnan() if allow_infinite else ~selected.isfinite()
    if bool(bad.any()):
        allowed = "finite numbers or ±inf" if allow_infinite else "finite numbers"
        num_valid = bad.numel() if mask is None else int(mask.expand(bad.shape).sum())
        raise NonFiniteError(
            f"{name}: {int(bad.sum())} of {num_valid} valid places hold "
            f"{_first_bad(selected, bad)}; allowed are {allowed}. Mask what was not executed, and look for the source "
            "upstream (diverged weights, a reward or value that is not finite)."
        )
    return selected


def _first_bad(selected: Tensor, bad: Tensor) -> float:
    return float(selected.detach()[bad][0])


def masked_sum(elements: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over valid elements, and their number.

    Args:
        elements: any shape, finite everywhere.
        mask: bool, broadcastable to `elements`.

    Returns:
        (sum, count): scalars; the sum is differentiable, the count int64. Elements are counted, not rows.
    """
    return elements.where(mask, 0.0).sum(), mask.expand(elements.shape).sum()


def masked_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return `total / count`, and 0 (still connected to the graph) if nothing is valid."""
    return total / count.clamp(min=1)
