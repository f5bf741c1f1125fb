"""Random changes of training frames: OpenVLA-OFT's, in their order, without TensorFlow.

Crop, brightness, contrast, saturation, hue, with values clipped to [0, 1] after each (dlimp/augmentations.py of
kvablack/dlimp, with the settings of vla-scripts/finetune.py of moojink/openvla-oft). Unlike there, where one seed gives
all random numbers of a frame, they are drawn independently: a crop lies anywhere, not only on the diagonal.

Frames are planes (3, H, H) float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.policies.image_transforms import crop_box
from vla_rl.types import FloatArray, UInt8Array


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Sizes of the changes; see `vla_rl.recipe.supervised_sections.AugmentationSection`."""

    crop: float
    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __call__(self, planes: FloatArray, generator: np.random.Generator) -> UInt8Array:
        """Change one frame, (3, H, H) of levels 0..255, at random; return (H, H, 3) uint8."""
        image = planes / np.float32(255.0)
        if self.crop < 1.0:
            image = clipped(random_crop(image, area=self.crop, generator=generator))
        if self.brightness:
            image = clipped(image + np.float32(generator.uniform(-self.brightness, self.brightness)))
        if self.contrast:
            image = clipped(with_contrast(image, generator.uniform(1.0 - self.contrast, 1.0 + self.contrast)))
        if self.saturation:
            image = clipped(with_saturation(image, generator.uniform(1.0 - self.saturation, 1.0 + self.saturation)))
        if self.hue:
            image = clipped(with_hue(image, generator.uniform(-self.hue, self.hue)))
        return np.ascontiguousarray((image * np.float32(255.0)).astype(np.uint8).transpose(1, 2, 0))


def clipped(image: FloatArray) -> FloatArray:
    """Return the values, those beyond [0, 1] replaced by the nearer limit."""
    return np.clip(image, np.float32(0.0), np.float32(1.0))


def random_crop(image: FloatArray, *, area: float, generator: np.random.Generator) -> FloatArray:
    """Return a square of that share of the area, anywhere in the image, in full size."""
    side = np.float32(area**0.5)
    top, left = (np.float32(generator.uniform(0.0, 1.0 - float(side))) for _ in range(2))
    return crop_box(image, top=top, left=left, side=side)


def with_contrast(image: FloatArray, factor: float) -> FloatArray:
    """Return the distance of every value from its channel's mean times `factor`."""
    mean = image.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    changed: FloatArray = (image - mean) * np.float32(factor) + mean
    return changed


def with_saturation(image: FloatArray, factor: float) -> FloatArray:
    """Return the image with its saturation in HSV times `factor`, at most 1; hue and value stay."""
    value = image.max(axis=0)
    chroma = value - image.min(axis=0)
    saturation = np.divide(chroma, value, out=np.zeros_like(chroma), where=value > 0)
    most = np.divide(1.0, saturation, out=np.full_like(saturation, np.inf), where=saturation > 0)
    changed: FloatArray = (value - (value - image) * np.minimum(np.float32(factor), most)).astype(np.float32)
    return changed


def with_hue(image: FloatArray, shift: float) -> FloatArray:
    """Return the image with its hue in HSV moved by a share of the circle; saturation and value stay."""
    red, green, blue = image
    value = image.max(axis=0)
    chroma = value - image.min(axis=0)
    safe = np.where(chroma > 0, chroma, np.float32(1.0))
    sector = np.where(
        value == red, (green - blue) / safe, np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    hue = (sector + np.float32(6.0 * shift)) % 6.0  # 0..6
    sectors = (np.array([5.0, 3.0, 1.0], np.float32)[:, None, None] + hue) % 6.0
    changed: FloatArray = value - chroma * np.clip(np.minimum(sectors, 4.0 - sectors), 0.0, 1.0)
    return changed.astype(np.float32)
