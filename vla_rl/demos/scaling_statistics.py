"""Statistics that scale actions and proprioception, as OpenVLA-OFT computes and stores them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_rl.demos.checks import check_episode
from vla_rl.errors import UserError
from vla_rl.types import FloatArray

ACTION_MASK = [True] * 6 + [False]  # the gripper is not scaled


class HasRows(Protocol):
    """Rows of an episode that statistics are computed from."""

    @property
    def state(self) -> FloatArray:
        """Return (T, 8)."""
        ...

    @property
    def actions(self) -> FloatArray:
        """Return (T, 7), gripper -1 open, +1 close."""
        ...


def action_statistics(episodes: Iterable[HasRows]) -> dict[str, Any]:
    """Return the entry of `dataset_statistics.json` for a whole data set.

    Computed after the gripper's transform 1 - clip(command, 0, 1), so that 1 is open and 0 is closed; over all rows of
    all episodes together; population standard deviation; quantiles interpolated linearly in double precision,
    everything else in single precision, as upstream does (prismatic/vla/datasets/rlds/utils/data_utils.py of
    moojink/openvla-oft). It keeps the numbers of all rows, 60 bytes each, and no pictures.

    Args:
        episodes: In any order; the order changes only the rounding of means.

    Returns:
        `action` and `proprio` with mean, std, max, min, q01 and q99 as lists, `mask` in `action`, `num_transitions` and
        `num_trajectories`.

    Raises:
        UserError: there is no episode, or one has no rows, actions and states of other shapes, or numbers that are not
            finite in single precision or too large for a sum.
    """
    actions, states = [], []
    for number, episode in enumerate(episodes, 1):
        moves, state = _single(episode.actions), _single(episode.state)
        check_episode(moves, state, len(moves) if moves.ndim else 0, (f"episode {number}", ""))
        actions.append(to_training_actions(moves))
        states.append(state)
    if not actions:
        raise UserError("statistics need at least one episode, and there is none")
    joined = np.concatenate(actions)
    return {
        "action": {**_of(joined), "mask": list(ACTION_MASK)},
        "proprio": _of(np.concatenate(states)),
        "num_transitions": len(joined),
        "num_trajectories": len(actions),
    }


def to_training_actions(actions: FloatArray) -> FloatArray:
    """Convert actions (T, 7) in the environment's units to the gripper convention of training: 1 open, 0 closed."""
    trained = np.array(actions, np.float32)
    trained[:, -1] = 1.0 - np.clip(trained[:, -1], 0.0, 1.0)
    return trained


def _single(values: FloatArray) -> FloatArray:
    """Return numbers in single precision; what does not fit becomes infinite, and anything else stays for the check."""
    given = np.asarray(values)
    with np.errstate(over="ignore"):
        return given.astype(np.float32) if given.dtype.kind in "fiub" else given


def _of(values: NDArray[np.float32]) -> dict[str, list[float]]:
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.quantile(values, [0.01, 0.99], axis=0)  # a list of levels is double precision
        found = {
            "mean": values.mean(0),
            "std": values.std(0),
            "max": values.max(0),
            "min": values.min(0),
            "q01": low,
            "q99": high,
        }
    if not all(np.isfinite(each).all() for each in found.values()):
        raise UserError(
            f"statistics of numbers up to {np.abs(values).max():g} overflow single precision; bring actions and states "
            "into the environment's units"
        )
    return {name: each.tolist() for name, each in found.items()}
