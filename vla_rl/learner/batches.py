"""Rows of a batch: the observations and decisions of its segments that a forward pass uses.

Padding never reaches the policy: a row is a valid place of the (B, T) grid; there are R rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_rl.section import TimeLimit
from vla_rl.types import PolicyInputs, SegmentBatch

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Places in a batch."""

    segment: Index  # (R,)
    time: Index  # (R,)

    def __len__(self) -> int:
        return len(self.segment)

    def __getitem__(self, chosen: slice | Index | NDArray[np.bool_]) -> Rows:
        return Rows(self.segment[chosen], self.time[chosen])

    def sorted_by(self, keys: Index) -> Rows:
        """Return the rows in ascending order of their keys, (R,); rows of one key keep their order."""
        return self[np.argsort(keys, kind="stable")]

    def followed_by(self, others: Rows) -> Rows:
        """Return these rows, then the others."""
        return Rows(np.concatenate([self.segment, others.segment]), np.concatenate([self.time, others.time]))

    def of_segments(self, segments: Index) -> Rows:
        """Return the rows in some of the segments, in the same order."""
        return self[np.isin(self.segment, segments)]

    def cuts(self, count: int) -> Iterator[slice]:
        """Yield exactly `count` consecutive slices of nearly equal length; some are empty if there are fewer rows."""
        bounds = np.linspace(0, len(self), count + 1).round().astype(int).tolist()
        return itertools.starmap(slice, itertools.pairwise(bounds))


def decision_rows(batch: SegmentBatch) -> Rows:
    """Return the places of decisions, segment by segment."""
    return Rows(*np.nonzero(batch.mask))


def bootstrap_rows(batch: SegmentBatch, *, time_limit: TimeLimit) -> Rows:
    """Return the observations to bootstrap from, after the last decision of each segment whose task continues."""
    every = Rows(np.arange(len(batch.mask)), batch.mask.sum(axis=1))
    last = (every.segment, every.time - 1)
    is_over = batch.terminated[last] | (batch.truncated[last] if time_limit == "end" else False)
    return every[~is_over]


def first_draws(batch: SegmentBatch) -> Index:
    """Return for each segment the first of the batch that is the same one, (B,): sampling draws with replacement.

    Segments of one episode differ in the age of their first decision.
    """
    _, first, inverse = np.unique(
        np.stack([batch.episode, batch.age[:, 0]], axis=1), axis=0, return_index=True, return_inverse=True
    )
    return first[inverse.reshape(-1)]


def distinct_rows(batch: SegmentBatch, rows: Rows) -> tuple[Rows, Index]:
    """Return the rows without repetitions, and for each given row its place among them, (R,).

    Rows that all differ stay in their order.
    """
    length = batch.mask.shape[1] + 1
    keys = first_draws(batch)[rows.segment] * length + rows.time
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return rows, np.arange(len(rows))
    return rows[first], inverse.reshape(-1)


def policy_inputs(batch: SegmentBatch, rows: Rows, device: torch.device, *, buckets: Index) -> PolicyInputs:
    """Return the policy's inputs in those rows, (R,) buckets included, on its device."""
    return PolicyInputs(
        frames=torch.from_numpy(batch.frames[rows.segment, rows.time]).to(device),
        state=torch.from_numpy(batch.state[rows.segment, rows.time]).to(device),
        task_index=torch.from_numpy(batch.task_index[rows.segment]).to(device),
        buckets=tuple(np.unique(buckets).tolist()),
    )


def token_mask(batch: SegmentBatch, rows: Rows, *, action_dim: int) -> Tensor:
    """Return (R, A) bool: tokens whose control step was executed; token i belongs to control step i // D."""
    control_step = np.arange(batch.tokens.shape[2]) // action_dim
    return torch.from_numpy(control_step < batch.executed[rows.segment, rows.time][:, None])


def at(array: NDArray[np.generic], rows: Rows) -> Tensor:
    """Return the rows of a (B, T, ...) array, (R, ...), on the CPU."""
    return torch.from_numpy(array[rows.segment, rows.time])
