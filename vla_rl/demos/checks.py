"""Checks of every episode of every format."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.demos.data_errors import DemosError
from vla_rl.demos.episode import ACTION_DIM, STATE_DIM


def check_numbers(name: str, values: NDArray[Any], shape: tuple[int, ...], place: tuple[str, str]) -> None:
    """Check an array's shape, and that all its numbers are finite.

    Raises:
        DemosError: the shape differs, or a number is not finite.
    """
    file, part = place
    key = f"{part}/{name}" if part else name
    if values.shape != shape or values.dtype.kind not in "fiub":
        raise DemosError(
            file, key, "wrong shape or type", found=f"{values.shape} {values.dtype}", allowed=f"{shape} of numbers"
        )
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise DemosError(
            file,
            key,
            "must hold finite numbers",
            found=f"{values[tuple(bad[0])]} in row {bad[0][0]}"
            + (f", and {len(bad) - 1} more" if len(bad) > 1 else ""),
            fix="remove this episode, or download the data set again",
        )


def check_episode(actions: NDArray[Any], state: NDArray[Any], pictures: int, place: tuple[str, str]) -> None:
    """Check that the parts of an episode have one row for each picture, and at least one.

    Raises:
        DemosError: they do not match.
    """
    if not pictures:
        raise DemosError(*place, "an episode has at least one row", found="none", fix="take this episode out")
    check_numbers("actions", actions, (pictures, ACTION_DIM), place)
    check_numbers("state", state, (pictures, STATE_DIM), place)


def missing_key(place: tuple[str, str], key: str, present: list[str]) -> DemosError:
    """Return the error of a missing key."""
    file, part = place
    return DemosError(
        file,
        f"{part}/{key}" if part else key,
        "is missing",
        found=", ".join(sorted(present)) or "nothing",
        fix="this key is needed; record the dataset with it",
    )
