"""An environment with LIBERO's shapes and nothing behind it: pictures that move, success by chance, a clock.

It costs an env worker what a simulator leaves to the program: waiting, the image transform, the ring. It is no recipe's
environment, because nothing can be learnt in it.
"""

from __future__ import annotations

import time

import numpy as np

from vla_rl.types import ChunkResult, FloatArray, Observation, TaskInfo, UInt8Array

STATE_DIM = 8
SUCCESS = 0.03  # per decision
PICTURES = 16


class InventedEnv:
    """Satisfies `vla_rl.types.Environment`."""

    def __init__(self, task: TaskInfo, *, num_images: int, size: int, horizon: int, step_seconds: float) -> None:
        """Make it.

        Args:
            task: that it pretends to be.
            num_images: cameras.
            size: pixels a side.
            horizon: control steps after which an episode is truncated.
            step_seconds: slept in every control step, as a simulator would compute.
        """
        self._task, self._horizon, self._step_seconds = task, horizon, step_seconds
        self._pictures = pictures(num_images, size, seed=task.task_id)
        self._random = np.random.default_rng(task.task_id)
        self._elapsed = 0

    @property
    def task(self) -> TaskInfo:
        """The task that it pretends to be."""
        return self._task

    @property
    def horizon(self) -> int:
        """Control steps after which an episode is truncated."""
        return self._horizon

    def reset(self, init_state: int, *, seed: int = 0) -> Observation:
        """Start an episode; same arguments, same episode."""
        self._random = np.random.default_rng([seed, self._task.task_id, init_state])
        self._elapsed = 0
        return self._see()

    def step_chunk(self, actions: FloatArray) -> ChunkResult:
        """Let the time of the actions, (K, D), pass; they have no effect."""
        executed = min(len(actions), self._horizon - self._elapsed)
        time.sleep(executed * self._step_seconds)
        self._elapsed += executed
        terminated = bool(self._random.random() < SUCCESS)
        truncated = not terminated and self._elapsed >= self._horizon
        return ChunkResult(self._see(), float(terminated), terminated, truncated, executed)

    def close(self) -> None:
        """Nothing is held."""

    def _see(self) -> Observation:
        state = self._random.normal(size=STATE_DIM).astype(np.float32)
        return Observation(self._pictures[self._random.integers(PICTURES)], state)


def pictures(num_images: int, size: int, *, seed: int) -> UInt8Array:
    """(PICTURES, N, size, size, 3): coloured blocks with noise; JPEG takes as long for them as for a scene."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (PICTURES, num_images, 8, 8, 3))
    side = -(-size // 8)
    smooth = blocks.repeat(side, axis=2).repeat(side, axis=3)[:, :, :size, :size]
    noisy: UInt8Array = np.clip(smooth + random.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    return noisy


def build_invented(*, task: TaskInfo, num_images: int, size: int, horizon: int, step_seconds: float) -> InventedEnv:
    """For a `functools.partial`, which crosses to an env worker."""
    return InventedEnv(task, num_images=num_images, size=size, horizon=horizon, step_seconds=step_seconds)
