"""Transforms from camera frames to a policy's input frames. Rollouts, training and evaluation share one of these.

`oft` reproduces OpenVLA-OFT's own evaluation without TensorFlow: a JPEG round trip, Lanczos-3 resizing, and
a bilinear resize of the central 90 % of the area. `rlinf` is one bicubic resize. Both expect upright frames (LIBERO's
renders are rotated by 180° before). Needs only numpy, Pillow and simplejpeg, because env workers import no torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from vla_rl.types import FloatArray, UInt8Array

RENDER_RATIO = 256 / 224  # published policies see 224 pixels of a 256-pixel render
CROP_AREA = 0.9
CROP_SIDE = CROP_AREA**0.5
JPEG_QUALITY = 95
CHROMA_4_2_0 = 2  # Pillow's number for it
Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class OFTTransform:
    """JPEG, Lanczos-3, central crop: the transform of the original and SimpleVLA-RL checkpoints.

    Differs from TensorFlow's result by at most 1 grey level, on fewer than 0.05 % of the pixels.
    """

    output_size: int = 224
    _resize: FloatArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        matrix = resampling_matrix(self.input_size, self.output_size, kernel=lanczos3, support=3.0)
        object.__setattr__(self, "_resize", matrix)

    @property
    def input_size(self) -> int:
        """Return the pixels per side that the camera must render."""
        return render_size(self.output_size)

    def __call__(self, frames: UInt8Array) -> UInt8Array:
        """Transform (N, input_size, input_size, 3) to (N, output_size, output_size, 3)."""
        return to_frames(self.crop(self.resize(frames)))

    def resize(self, frames: UInt8Array, *, compressed: bool = False) -> FloatArray:
        """Do what precedes the crop: (N, input_size, input_size, 3) to (N, 3, output_size, output_size).

        Args:
            frames: as the camera renders them.
            compressed: they went through JPEG already.

        Returns:
            Whole numbers 0..255.
        """
        check_frames(frames, self.input_size)
        if len(frames) and not compressed:
            frames = np.stack([jpeg_round_trip(frame) for frame in frames])
        return resample(frames, self._resize)

    @property
    def crop_area(self) -> float:
        """Return the share of the area that the crop keeps."""
        return CROP_AREA

    def crop(self, planes: FloatArray) -> FloatArray:
        """Crop (N, 3, H, H) whole numbers 0..255 at the centre and return them in full size."""
        return central_crop(planes)


@dataclass(frozen=True, slots=True)
class BicubicTransform:
    """One antialiased bicubic resize, no crop: the transform of RLinf's checkpoints."""

    output_size: int = 224
    _resize: FloatArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        matrix = resampling_matrix(self.input_size, self.output_size, kernel=cubic, support=2.0)
        object.__setattr__(self, "_resize", matrix)

    @property
    def input_size(self) -> int:
        """Return the pixels per side that the camera must render."""
        return render_size(self.output_size)

    def __call__(self, frames: UInt8Array) -> UInt8Array:
        """Transform (N, input_size, input_size, 3) to (N, output_size, output_size, 3)."""
        return to_frames(self.resize(frames))

    def resize(self, frames: UInt8Array, *, compressed: bool = False) -> FloatArray:  # noqa: ARG002 - no JPEG here
        """Resize (N, input_size, input_size, 3) to (N, 3, output_size, output_size) whole numbers 0..255."""
        check_frames(frames, self.input_size)
        return resample(frames, self._resize)

    @property
    def crop_area(self) -> float:
        """Return the share of the area that the crop keeps: all of it."""
        return 1.0

    def crop(self, planes: FloatArray) -> FloatArray:
        """Return the planes as they are."""
        return planes


Transform = OFTTransform | BicubicTransform


def frame_transform(name: str, *, output_size: int) -> Transform:
    """Return the transform of that name (`oft` or `rlinf`) for frames of `output_size` pixels per side."""
    transforms: dict[str, Callable[[int], Transform]] = {
        "oft": OFTTransform,
        "rlinf": BicubicTransform,
    }
    if name not in transforms:
        raise ValueError(f"image transform {name!r} is unknown; choose one of {sorted(transforms)}")
    if output_size < 2:
        raise ValueError(f"output_size must be at least 2 pixels, found {output_size}")
    return transforms[name](output_size)


def render_size(output_size: int) -> int:
    """Return the pixels per side to render for frames of `output_size`, in the proportion of the published policies."""
    return round(output_size * RENDER_RATIO)


def check_frames(frames: UInt8Array, size: int) -> None:
    """Raise ValueError unless `frames` is (N, size, size, 3) uint8."""
    if frames.ndim != 4 or frames.shape[1:] != (size, size, 3) or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 of shape (N, {size}, {size}, 3); found {frames.dtype} {frames.shape}")


def jpeg_round_trip(frame: UInt8Array) -> UInt8Array:
    """Compress and decompress one frame (H, W, 3), as TensorFlow does by default.

    The fast inverse DCT and the smooth chroma upsampling matter: TensorFlow uses both, whereas Pillow's decoder uses
    the slow DCT.
    """
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=CHROMA_4_2_0)
    decoded: UInt8Array = simplejpeg.decode_jpeg(buffer.getvalue(), "RGB", fastdct=True, fastupsample=False)
    return decoded


def lanczos3(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sinc(x) sinc(x / 3) for |x| < 3."""
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic convolution kernel with a = -0.5."""
    a, t = -0.5, np.abs(x)
    near = ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
    far = a * (((t - 5.0) * t + 8.0) * t - 4.0)
    return np.where(t < 1.0, near, np.where(t < 2.0, far, 0.0))


def resampling_matrix(input_size: int, output_size: int, *, kernel: Kernel, support: float) -> FloatArray:
    """Return weights (output_size, input_size) of an antialiased resize along one axis.

    Pixel centres lie at half-integers; when shrinking, the kernel is widened by the ratio; rows sum to 1.
    """
    scale = max(input_size / output_size, 1.0)
    centers = (np.arange(output_size) + 0.5) * (input_size / output_size)
    distance = (np.arange(input_size) + 0.5)[None, :] - centers[:, None]
    weights = np.where(np.abs(distance) <= support * scale, kernel(distance / scale), 0.0)
    normalized: FloatArray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalized


def resample(frames: UInt8Array, matrix: FloatArray, columns: FloatArray | None = None) -> FloatArray:
    """Apply weights to both axes of (N, H, W, 3): the same, unless those of the columns are given.

    Returns:
        (N, 3, H', W') float32 of whole numbers 0..255; halves round to even, as in the reference.
    """
    planes = frames.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    resized: FloatArray = np.matmul(matrix, np.matmul(planes, (matrix if columns is None else columns).T))
    np.rint(resized, out=resized)
    return np.clip(resized, 0.0, 255.0, out=resized)


def central_crop(planes: FloatArray) -> FloatArray:
    """Resize the central 90 % of the area of (N, 3, H, H) back to full size, bilinearly in float32.

    The sample grid touches the corners of the crop box; the result is floor(255.5 x) of x in [0, 1], which is how
    TensorFlow turns floats into bytes.
    """
    side = np.float32(CROP_SIDE)
    corner = (np.float32(1.0) - side) / np.float32(2.0)
    blended = crop_box(planes / np.float32(255.0), top=corner, left=corner, side=side)
    levels: FloatArray = np.multiply(blended, np.float32(255.5), dtype=np.float32)
    np.floor(levels, out=levels)
    return np.clip(levels, 0.0, 255.0, out=levels)


def to_frames(planes: FloatArray) -> UInt8Array:
    """Convert (N, 3, H, W) whole numbers to contiguous (N, H, W, 3) uint8."""
    return np.ascontiguousarray(planes.astype(np.uint8).transpose(0, 2, 3, 1))


def crop_box(images: FloatArray, *, top: np.float32, left: np.float32, side: np.float32) -> FloatArray:
    """Return a square box of (..., H, H) in full size, bilinearly; the sample grid touches its corners.

    Args:
        images: float32.
        top: upper edge, as a share of the height.
        left: left edge, as a share of the width.
        side: of the box, as a share; `top + side` and `left + side` are at most 1.
    """
    low, high, fraction = _crop_grid(images.shape[-1], left, side)
    begin = images[..., low]
    across = begin + (images[..., high] - begin) * fraction
    low, high, fraction = _crop_grid(images.shape[-2], top, side)
    begin = across[..., low, :]
    blended: FloatArray = begin + (across[..., high, :] - begin) * fraction[:, None]
    return blended


def _crop_grid(
    size: int, first: np.float32, side: np.float32
) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]:
    """Return, for each output pixel of one axis, its two source pixels and the weight of the second."""
    last = first + side
    step = (last - first) * np.float32(size - 1) / np.float32(size - 1)
    positions = first * np.float32(size - 1) + np.arange(size, dtype=np.float32) * step
    low = np.clip(np.floor(positions).astype(np.int64), 0, size - 1)
    high = np.minimum(low + 1, size - 1)
    return low, high, positions - low.astype(np.float32)
