"""Random changes of frames, each against its definition."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from vla_rl.policies.image_transforms import CROP_SIDE, central_crop, crop_box
from vla_rl.sft.augmentation import Augmentation, random_crop, with_contrast, with_hue, with_saturation

NONE = {"crop": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
IMAGE = np.random.default_rng(0).uniform(0.05, 0.95, (3, 6, 6)).astype(np.float32)


def in_hsv(change) -> np.ndarray:
    """The image with every pixel changed in HSV, one by one."""
    found = np.empty_like(IMAGE)
    for row in range(6):
        for column in range(6):
            hsv = colorsys.rgb_to_hsv(*IMAGE[:, row, column].tolist())
            found[:, row, column] = colorsys.hsv_to_rgb(*change(*hsv))
    return found


@pytest.mark.parametrize("factor", [0.8, 1.2, 3.0])
def test_saturation_is_scaled_in_hsv_up_to_1(factor: float) -> None:
    expected = in_hsv(lambda hue, saturation, value: (hue, min(1.0, factor * saturation), value))
    assert with_saturation(IMAGE, factor) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shift", [-0.05, 0.05, 0.4])
def test_the_hue_turns_in_hsv(shift: float) -> None:
    expected = in_hsv(lambda hue, saturation, value: ((hue + shift) % 1.0, saturation, value))
    assert with_hue(IMAGE, shift) == pytest.approx(expected, abs=1e-5)


def test_grey_has_no_hue_and_no_saturation_to_change() -> None:
    grey = np.full((3, 2, 2), 0.4, np.float32)
    black = np.zeros((3, 2, 2), np.float32)
    for image in (grey, black):
        assert with_hue(image, 0.3) == pytest.approx(image)
        assert with_saturation(image, 1.2) == pytest.approx(image)


def test_contrast_is_about_the_mean_of_each_channel() -> None:
    image = np.array([[[0.2, 0.4]], [[0.5, 0.5]], [[0.0, 1.0]]], np.float32)
    assert with_contrast(image, 1.2)[:, 0].tolist() == [
        pytest.approx([0.18, 0.42]), pytest.approx([0.5, 0.5]), pytest.approx([-0.1, 1.1])
    ]  # fmt: skip


def test_a_crop_in_the_middle_is_the_crop_of_acting_and_random_ones_lie_anywhere() -> None:
    planes = np.rint(255 * IMAGE[None]).astype(np.float32)
    corner = np.float32((1 - CROP_SIDE) / 2)
    middle = crop_box((planes / 255).astype(np.float32), top=corner, left=corner, side=np.float32(CROP_SIDE))
    assert np.clip(np.floor(255.5 * middle), 0, 255) == pytest.approx(central_crop(planes))
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32), (3, 6, 6))
    lefts = [random_crop(ramp, area=0.25, generator=np.random.default_rng(seed))[0, 0, 0] for seed in range(40)]
    tops = [random_crop(ramp.transpose(0, 2, 1), area=0.25, generator=np.random.default_rng(seed))[0, 0, 0]
            for seed in range(40)]  # fmt: skip
    assert 0 <= min(lefts) < 0.5 < 2.0 < max(lefts) <= 2.5
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.5  # not on the diagonal


def test_brightness_moves_all_values_alike_and_levels_stay_levels() -> None:
    planes = np.full((3, 4, 4), 100.0, np.float32)
    made = [Augmentation(**NONE | {"brightness": 0.2})(planes, np.random.default_rng(seed)) for seed in range(50)]
    assert all(len(np.unique(one)) == 1 and one.dtype == np.uint8 and one.shape == (4, 4, 3) for one in made)
    levels = [int(one[0, 0, 0]) for one in made]
    assert 100 - 52 <= min(levels) < 70 < 130 < max(levels) <= 100 + 52
    assert (Augmentation(**NONE)(planes, np.random.default_rng(0)) == 100).all()
    white = Augmentation(**NONE | {"brightness": 1.0, "contrast": 0.5})(planes * 2.5, np.random.default_rng(1))
    assert white.min() >= 0
