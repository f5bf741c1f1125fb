"""Random numbers of a batch: all from one generator, or those of every row from a generator of its own.

One generator is fast, and enough where a batch always has the same rows in the same order. With a generator for each
row, what a row draws does not depend on which other rows share the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RandomSource = torch.Generator | Sequence[torch.Generator]
"""A generator on the device of the numbers, or one for each row on the CPU, so that every device gets the same ones."""


def uniform(
    shape: Sequence[int], source: RandomSource | None, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return numbers drawn uniformly from [0, 1), of a shape whose first dimension is the row.

    Args:
        shape: (B, ...).
        source: None: torch's own generator.
        device: device of the result.
        dtype: type of the result.

    Raises:
        ValueError: generators for more or fewer rows than B.
    """
    if source is None or isinstance(source, torch.Generator):
        return torch.rand(shape, generator=source, device=device, dtype=dtype)
    return _stacked([torch.rand(shape[1:], generator=own, dtype=dtype) for own in source], shape, device)


def normal(
    shape: Sequence[int], source: RandomSource | None, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return numbers drawn from the standard normal distribution; arguments and errors are those of `uniform`."""
    if source is None or isinstance(source, torch.Generator):
        return torch.randn(shape, generator=source, device=device, dtype=dtype)
    return _stacked([torch.randn(shape[1:], generator=own, dtype=dtype) for own in source], shape, device)


def _stacked(rows: Sequence[Tensor], shape: Sequence[int], device: torch.device) -> Tensor:
    if len(rows) != shape[0]:
        raise ValueError(f"{shape[0]} rows were to be drawn from {len(rows)} generators; each row needs one")
    return torch.stack(list(rows)).to(device)
