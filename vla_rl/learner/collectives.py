"""Small collectives of the control plane: numbers and flags, on the CPU, each with a deadline.

They run in a separate Gloo group beside the one for gradients: on a GPU this keeps NCCL's stream free of them, and if a
rank dies the others fail with an error instead of waiting forever.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


class Collectives:
    """Sums, gathers and decisions over all ranks; with one rank they return their argument.

    Every method must be called by all ranks, in the same order.

    Args:
        timeout_s: seconds until a collective that other ranks do not join raises.
    """

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout = timedelta(seconds=timeout_s)
        self._group: dist.ProcessGroup | None = None
        self.rank = 0
        self.num_ranks = 1
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.rank = dist.get_rank()
            self.num_ranks = dist.get_world_size()
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, which writes the files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank has reached this call."""
        if self._group is not None:
            dist.monitored_barrier(self._group, timeout=self._timeout)

    def sum_over_ranks(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum every entry over the ranks, in float64. All ranks pass the same keys in the same order."""
        if self._group is None:
            return dict(values)
        packed = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(packed, group=self._group)
        return dict(zip(values, packed.tolist(), strict=True))

    def any_over_ranks(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank: the same result everywhere."""
        return self.sum_over_ranks({"flag": float(flag)})["flag"] > 0

    def gather_over_ranks(self, values: Tensor) -> Tensor:
        """Concatenate the ranks' tensors along the first dimension, in rank order; lengths may differ.

        Returns:
            a CPU tensor of the same dtype, identical on every rank.
        """
        values = values.detach().cpu().contiguous()
        if self._group is None:
            return values
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.num_ranks)]
        dist.all_gather(lengths, torch.tensor([values.shape[0]]), group=self._group)
        counts = [int(length.item()) for length in lengths]
        padded = torch.zeros((max(counts), *values.shape[1:]), dtype=values.dtype)
        padded[: values.shape[0]] = values
        parts = [torch.zeros_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
