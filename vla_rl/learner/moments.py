"""Advantage moments of the updates so far, for normalising before those of the batch itself are known."""

from __future__ import annotations

import torch
from torch import Tensor

DECAY = 0.9  # weight of an update against that of the next one: about the last ten count


class RunningMoments:
    """Sum, sum of squares and number of advantages, (3,) float64, where older updates weigh less and less.

    Mean and deviation follow from the three sums as they do from those of one batch. The sums are over all ranks, so
    that every rank holds the same.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    @property
    def sums(self) -> Tensor | None:
        """To normalise with; None before the first update."""
        return self._sums

    def add(self, moments: Tensor) -> None:
        """Count an update, whose `advantage_moments` over all ranks these are."""
        self._sums = moments if self._sums is None else DECAY * self._sums + moments

    def state_dict(self) -> dict[str, list[float]]:
        """For a checkpoint, JSON-serialisable."""
        return {} if self._sums is None else {"sums": self._sums.tolist()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from a checkpoint; from one without moments as at the start."""
        self._sums = torch.tensor(state["sums"], dtype=torch.float64) if "sums" in state else None
