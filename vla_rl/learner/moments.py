"""Advantage moments of past updates, for normalising before those of the batch itself are known."""

from __future__ import annotations

import torch
from torch import Tensor

DECAY = 0.9  # weight of an update relative to the next one: about the last ten count


class RunningMoments:
    """Sum, sum of squares and number of advantages, (3,) float64, with older updates weighted less and less.

    Mean and standard deviation follow from the three sums as they do for one batch. The sums are over all ranks, so
    that they are the same on every rank.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    @property
    def sums(self) -> Tensor | None:
        """Return the sums to normalise with; None before the first update."""
        return self._sums

    def add(self, moments: Tensor) -> None:
        """Add an update's `advantage_moments` over all ranks."""
        self._sums = moments if self._sums is None else DECAY * self._sums + moments

    def state_dict(self) -> dict[str, list[float]]:
        """Return the state for a checkpoint, JSON-serialisable."""
        return {} if self._sums is None else {"sums": self._sums.tolist()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restore the state of a checkpoint; one without moments gives the initial state."""
        self._sums = torch.tensor(state["sums"], dtype=torch.float64) if "sums" in state else None
