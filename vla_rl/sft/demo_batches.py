"""Batches of samples: the next one is prepared by threads while the present one is learned from."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_rl.policies.image_transforms import Transform, to_frames
from vla_rl.sft.augmentation import Augmentation
from vla_rl.sft.frames import FrameStore
from vla_rl.sft.samples import Order, Rows, Samples
from vla_rl.types import FloatArray, UInt8Array


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples with their frames. B samples, N cameras, A action tokens."""

    frames: UInt8Array  # (B, N, S, S, 3)
    state: FloatArray  # (B, 8)
    task_index: Rows  # (B,)
    tokens: NDArray[np.int16]  # (B, A)
    actions: FloatArray  # (B, K, 7) in the environment's units
    values: FloatArray  # (B,) discounted outcomes

    def __len__(self) -> int:
        return len(self.task_index)

    def __getitem__(self, chosen: Rows | slice) -> Batch:
        return Batch(
            self.frames[chosen],
            self.state[chosen],
            self.task_index[chosen],
            self.tokens[chosen],
            self.actions[chosen],
            self.values[chosen],
        )


class Loader:
    """Loader of this rank's part of every batch.

    What a batch holds depends on the seed and its index alone: not on threads, on resumes, or, over all ranks
    together, on their number.

    Args:
        samples: to choose from.
        frames: of their rows.
        transform: the policy's, for its crop.
        augmentation: of training frames.
        discount: of the outcomes, per decision.
        batch_size: of this rank.
        rank: of this process.
        num_ranks: ranks.
        seed: of order and augmentation.
        threads: that prepare frames.
    """

    def __init__(
        self,
        samples: Samples,
        frames: FrameStore,
        *,
        transform: Transform,
        augmentation: Augmentation,
        discount: float,
        batch_size: int,
        rank: int,
        num_ranks: int,
        seed: int,
        threads: int,
    ) -> None:
        self._samples, self._frames, self._transform = samples, frames, transform
        self._augmentation, self._discount = augmentation, discount
        self._batch_size, self._rank, self._num_ranks, self._seed = batch_size, rank, num_ranks, seed
        self._order = Order(samples.train, seed=seed)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="frames")
        self._coming: tuple[int, Rows, list[Future[UInt8Array]]] | None = None

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def batch(self, index: int) -> Batch:
        """Return this rank's part of the batch of that index, counted from 0; the next one is begun."""
        coming = self._coming if self._coming is not None and self._coming[0] == index else self._begin(index)
        _, rows, futures = coming
        frames = np.stack([future.result() for future in futures])
        self._coming = self._begin(index + 1)
        return self._complete(rows, frames)

    def measured(self, rows: Rows) -> Batch:
        """Return samples as a policy that acts sees them: cropped at the centre, otherwise unchanged."""
        return self._complete(rows, np.stack(list(self._pool.map(self._plain, rows.tolist()))))

    def _begin(self, index: int) -> tuple[int, Rows, list[Future[UInt8Array]]]:
        first = (index * self._num_ranks + self._rank) * self._batch_size
        drawn = np.arange(first, first + self._batch_size)
        rows = self._order[drawn]
        pairs = zip(rows.tolist(), drawn.tolist(), strict=True)
        futures = [self._pool.submit(self._changed, row, number) for row, number in pairs]
        return index, rows, futures

    def _complete(self, rows: Rows, frames: UInt8Array) -> Batch:
        samples = self._samples
        return Batch(
            frames=frames,
            state=samples.rollouts.state[rows],
            task_index=samples.task_index(rows),
            tokens=samples.chunk_tokens(rows),
            actions=samples.chunk_actions(rows),
            values=samples.values(rows, discount=self._discount),
        )

    def _changed(self, row: int, number: int) -> UInt8Array:
        """Return (N, S, S, 3): a sample's frames, changed at random."""
        frames = []
        for camera in range(self._frames.num_cameras):
            planes = self._frames.planes(row, camera).astype(np.float32)
            if self._augmentation.crop >= 1.0:
                planes = self._transform.crop(planes[None])[0]
            frames.append(self._augmentation(planes, np.random.default_rng([self._seed, number, camera])))
        return np.stack(frames)

    def _plain(self, row: int) -> UInt8Array:
        planes = np.stack([self._frames.planes(row, camera) for camera in range(self._frames.num_cameras)])
        return to_frames(self._transform.crop(planes.astype(np.float32)))
