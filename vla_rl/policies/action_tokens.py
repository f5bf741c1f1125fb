"""Discrete action tokens, statistics of actions and proprioception, and LIBERO's gripper convention.

A token is a local index j in 0..255, the column of the 256 action logits; the checkpoint's vocabulary id is 31744 + j.
The bin table is the one of OpenVLA (https://arxiv.org/abs/2406.09246): 256 edges on [-1, 1], 255 centres, and ids that
count down from the end of the vocabulary, so a large j is a small action. Letters as in `vla_rl.types`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_BINS = 256
FIRST_ACTION_ID = 31744  # vocabulary id of token j = 0; ids end before 32000, the first padding row
EPSILON = 1e-8  # added to q99 - q01 by the reference, in both directions
GRIPPER_THRESHOLD = 0.5  # of the gripper output: 1 is open, 0 is closed

_EDGES = np.linspace(-1.0, 1.0, NUM_BINS)
_CENTERS = (_EDGES[:-1] + _EDGES[1:]) / 2.0  # 255 centres

Float64Array = NDArray[np.float64]


def decode_tokens(tokens: ArrayLike) -> Float64Array:
    """Decode tokens 0..255 to normalised actions in (-1, 1), same shape, float64.

    Tokens 0 and 1 decode to the same centre: there are 256 tokens and 255 centres.
    """
    indices = np.asarray(tokens)
    if indices.size and (indices.min() < 0 or indices.max() >= NUM_BINS):
        raise ValueError(f"action tokens must lie in 0..{NUM_BINS - 1}; found {indices.min()}..{indices.max()}")
    return _CENTERS[np.clip(NUM_BINS - 1 - indices.astype(np.int64), 0, NUM_BINS - 2)]


def encode_tokens(normalized: ArrayLike) -> NDArray[np.int16]:
    """Encode normalised actions as tokens 0..255, same shape; values beyond [-1, 1] are clipped.

    Token 0 stands for exactly 1 alone, which token 1 decodes to as well.
    """
    bins = np.digitize(np.clip(np.asarray(normalized, np.float64), -1.0, 1.0), _EDGES)  # 1..256
    return (NUM_BINS - bins).astype(np.int16)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """1 % and 99 % quantiles of one quantity in a data set, and which components they normalise."""

    q01: Float64Array  # (D,)
    q99: Float64Array  # (D,)
    mask: NDArray[np.bool_]  # (D,) False: the component passes through unchanged

    @classmethod
    def from_mapping(cls, block: Mapping[str, ArrayLike]) -> Quantiles:
        """Read the `action` or `proprio` block of a data-set statistics file; without `mask` all components count."""
        q01 = np.asarray(block["q01"], dtype=np.float64)
        q99 = np.asarray(block["q99"], dtype=np.float64)
        mask = np.asarray(block.get("mask", np.ones(q01.shape, dtype=bool)), dtype=np.bool_)
        if not q01.shape == q99.shape == mask.shape or q01.ndim != 1:
            raise ValueError(
                f"q01, q99 and mask must be lists of one length; found shapes {q01.shape}, {q99.shape}, {mask.shape}"
            )
        return cls(q01=q01, q99=q99, mask=mask)


def unnormalize_actions(normalized: ArrayLike, action: Quantiles) -> Float64Array:
    """Convert normalised actions (..., D) in [-1, 1] to the units of the data set."""
    x = np.asarray(normalized)
    scaled = 0.5 * (x + 1.0) * (action.q99 - action.q01 + EPSILON) + action.q01
    return np.where(action.mask, scaled, x)


def normalize_actions(actions: ArrayLike, action: Quantiles, *, constant: NDArray[np.bool_]) -> Float64Array:
    """Convert actions (..., D) in the units of the data set to [-1, 1]; the inverse of `unnormalize_actions` there.

    Args:
        actions: the gripper's component in the convention of training: 1 open, 0 closed.
        action: quantiles of the data set.
        constant: (D,) components that never change in it; scaled ones of these become 0, as in the reference.
    """
    x = np.asarray(actions, np.float64)
    scaled = np.clip(2.0 * (x - action.q01) / (action.q99 - action.q01 + EPSILON) - 1.0, -1.0, 1.0)
    return np.where(action.mask, np.where(constant, 0.0, scaled), x)


def to_libero_gripper(actions: Float64Array) -> Float64Array:
    """Replace the last component, 1 open / 0 closed in the data, by LIBERO's command: -1 opens, +1 closes.

    Exactly at the threshold the gripper stays closed; the reference would send 0 there.
    """
    commands = actions.copy()
    commands[..., -1] = np.where(actions[..., -1] > GRIPPER_THRESHOLD, -1.0, 1.0)
    return commands
