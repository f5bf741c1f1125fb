"""Patterns to paint surfaces with."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from PIL import Image

from vla_rl.types import UInt8Array

Form = Literal["plain", "checks", "stripes", "marble"]
FORMS: tuple[Form, ...] = get_args(Form)
FIELDS = 8  # checks or stripes per side of a texture


def pattern(form: Form, colours: UInt8Array, *, height: int, width: int, rng: np.random.Generator) -> UInt8Array:
    """Return a pattern of two colours, (2, 3), as a picture (height, width, 3).

    Checks and stripes have `FIELDS` fields per side, and both colours cover the same area. Marble mixes the colours by
    smoothed noise.
    """
    rows, columns = (np.arange(side) * FIELDS // side for side in (height, width))
    if form == "plain":
        share = np.zeros((height, width))
    elif form == "checks":
        share = ((rows[:, None] + columns[None]) % 2).astype(np.float64)
    elif form == "stripes":
        share = np.broadcast_to(columns % 2, (height, width)).astype(np.float64)
    else:
        coarse = Image.fromarray(rng.integers(0, 256, (FIELDS, FIELDS), dtype=np.uint8))
        share = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    mixed = (1 - share[..., None]) * colours[0] + share[..., None] * colours[1]
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def blend(original: UInt8Array, painted: UInt8Array, share: float) -> UInt8Array:
    """Return (1 - share) · original + share · painted, rounded to the nearest grey level."""
    return np.asarray(np.rint((1 - share) * original.astype(np.float64) + share * painted), dtype=np.uint8)
