"""Operations on pictures, (H, W, 3) uint8: noise, blurs, fog, compression, occlusion.

The blurs and the fog follow LIBERO-plus, whose operations are those of ImageNet-C (Hendrycks and Dietterich 2019,
https://arxiv.org/abs/1903.12261) with parameters of its own. They are written here with NumPy and Pillow alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vla_rl.types import UInt8Array

Reals = NDArray[np.float64]

_TAILS = 4.0  # standard deviations at which a Gaussian's weights are cut off


def pixel_noise(picture: UInt8Array, *, sigma: float, rng: np.random.Generator) -> UInt8Array:
    """Add normal noise of `sigma` grey levels to every pixel and colour."""
    return _to_bytes(picture + rng.normal(0.0, sigma, picture.shape))


def gaussian_blur(picture: UInt8Array, *, sigma: float) -> UInt8Array:
    """Blur by a Gaussian of `sigma` pixels; the edge's pixels are repeated outside."""
    reach = int(_TAILS * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    blurred = picture.astype(np.float64)
    for axis in (0, 1):
        padded = np.pad(blurred, [(reach, reach) if it == axis else (0, 0) for it in range(3)], mode="edge")
        size = picture.shape[axis]
        blurred = sum(
            (weight * np.take(padded, range(start, start + size), axis=axis) for start, weight in enumerate(weights)),
            start=np.zeros_like(blurred),
        )
    return _to_bytes(blurred)


def motion_blur(picture: UInt8Array, *, radius: int, sigma: float, angle_deg: float) -> UInt8Array:
    """Smear in one direction, as ImageMagick's motion blur does.

    A pixel is the mean of itself and the 2 · radius pixels that follow it at the angle (0 is right, 90 down), weighted
    by the right half of a Gaussian of `sigma` pixels. The edge's pixels are repeated outside.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    angle = math.radians(angle_deg)
    down, right = (np.ceil(steps * part - 0.5).astype(int) for part in (math.sin(angle), math.cos(angle)))
    height, width = picture.shape[:2]
    rows, columns = np.arange(height), np.arange(width)
    total = np.zeros(picture.shape)
    for weight, dy, dx in zip(weights, down, right, strict=True):
        moved = picture[np.clip(rows + dy, 0, height - 1)][:, np.clip(columns + dx, 0, width - 1)]
        total += weight * moved
    return _to_bytes(total)


def glass_blur(
    picture: UInt8Array, *, sigma: float, max_shift: int, passes: int, rng: np.random.Generator
) -> UInt8Array:
    """Look through frosted glass: blur, exchange pixels with near ones, and blur again.

    Each pass visits the pixels from the last to the first, but not the `max_shift` rows and columns at the edges, and
    exchanges each with one at most `max_shift` rows and columns away.
    """
    height, width = picture.shape[:2]
    blurred = gaussian_blur(picture, sigma=sigma)
    rows, columns = range(height - max_shift, max_shift, -1), range(width - max_shift, max_shift, -1)
    places = np.add.outer(width * np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64)).ravel()
    order = list(range(height * width))
    for _ in range(passes):
        down, right = rng.integers(-max_shift, max_shift, size=(2, len(places)))
        for here, there in zip(places.tolist(), (places + width * down + right).tolist(), strict=True):
            order[here], order[there] = order[there], order[here]
    return gaussian_blur(blurred.reshape(-1, 3)[order].reshape(picture.shape), sigma=sigma)


def zoom_factors(limit: float, step: float) -> list[float]:
    """Return 1, 1 + step, 1 + 2 step, ... below `limit`."""
    return [round(1 + number * step, 2) for number in range(math.ceil(round((limit - 1) / step, 6)))]


def zoom_blur(picture: UInt8Array, *, factors: Sequence[float]) -> UInt8Array:
    """Return the mean of the picture and of its centre enlarged by every factor, bilinearly."""
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    total = picture.astype(np.float64)
    for factor in factors:
        x, y = (side * (1 - 1 / factor) / 2 for side in (width, height))
        zoomed = image.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, width - x, height - y))
        total += np.asarray(zoomed)
    return _to_bytes(total / (1 + len(factors)))


def fog(picture: UInt8Array, *, amplitude: float, decay: float, rng: np.random.Generator) -> UInt8Array:
    """Lay fog of `amplitude` over a picture, rescaled so that its brightest pixel keeps its brightness.

    (x + amplitude · f) · m / (m + amplitude)    with x the picture in 0..1, m its maximum, f a `fractal`
    """
    height, width = picture.shape[:2]
    scaled = picture / 255
    brightest = scaled.max()
    if brightest == 0:
        return picture.copy()
    cloud = fractal(max(height, width), decay=decay, rng=rng)[:height, :width, None]
    return _to_bytes(255 * (scaled + amplitude * cloud) * brightest / (brightest + amplitude))


def fractal(size: int, *, decay: float, rng: np.random.Generator) -> Reals:
    """Return a cloud in 0..1 by the diamond-square algorithm on a torus, at least (size, size).

    Every round halves the distance of the grid's points; a new point is the mean of its four neighbours plus a number
    drawn from a range, which each round divides by `decay`: the larger, the smoother.
    """
    side = 2 ** max(1, math.ceil(math.log2(size)))
    heights = np.zeros((side, side))
    step, wobble = side, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        around = corners + np.roll(corners, -1, 0)
        squares = (around + np.roll(around, -1, 1)) / 4
        heights[half::step, half::step] = squares + wobble * rng.uniform(-1, 1, squares.shape)
        centres = heights[half::step, half::step]
        beside = (centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1)) / 4
        heights[::step, half::step] = beside + wobble * rng.uniform(-1, 1, beside.shape)
        below = (centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0)) / 4
        heights[half::step, ::step] = below + wobble * rng.uniform(-1, 1, below.shape)
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return np.asarray(heights / heights.max())


def compress(picture: UInt8Array, *, quality: int) -> UInt8Array:
    """Return the picture after JPEG of a quality from 1 to 95."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def occlude(picture: UInt8Array, *, share: float, place: tuple[float, float]) -> UInt8Array:
    """Cover a square of `share` of the picture's area in grey.

    `place`, both in 0..1, is where the square lies between the left and the right, the first and the last row.
    """
    height, width = picture.shape[:2]
    side = round(math.sqrt(share * height * width))
    left, top = (round(where * (room - side)) for where, room in zip(place, (width, height), strict=True))
    covered = picture.copy()
    covered[top : top + side, left : left + side] = 128
    return covered


def _to_bytes(values: Reals) -> UInt8Array:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)
