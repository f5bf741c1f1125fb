"""Derivation of the reset seeds of episodes from the one seed of an evaluation or a training run."""

from __future__ import annotations

import numpy as np


def reset_seed(seed: int, task_id: int, init_state: int) -> int:
    """Return the number with which an episode of a schedule resets its environment: `env.reset(init_state, seed=...)`.

    An evaluation plays many initial states with one seed. If every reset used that seed directly, LIBERO would place
    its fixtures alike in all of them; mixed with task and state, each reset has its own draw, which depends neither on
    the order of the episodes nor on the worker that plays them.

    Args:
        seed: seed of the evaluation, or of the training schedule's job.
        task_id: position in its benchmark.
        init_state: number of the initial state.

    Returns:
        0 .. 2**32 - 1: the first word of `numpy.random.SeedSequence([seed, task_id, init_state])`.
    """
    return int(np.random.SeedSequence([seed, task_id, init_state]).generate_state(1)[0])
