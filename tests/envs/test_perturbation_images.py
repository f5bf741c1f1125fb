"""Operations on pictures, held to values worked out by hand and to properties from their definitions."""

import numpy as np
import pytest

from vla_rl.envs.libero.perturbations import images
from vla_rl.envs.libero.perturbations.patterns import FORMS, blend, pattern


def dot(size=9):
    picture = np.zeros((size, size, 3), np.uint8)
    picture[size // 2, size // 2] = 240
    return picture


def plain(grey=100, size=8):
    return np.full((size, size, 3), grey, np.uint8)


BLURS = {
    "gaussian": lambda picture: images.gaussian_blur(picture, sigma=2.0),
    "motion": lambda picture: images.motion_blur(picture, radius=5, sigma=2.0, angle_deg=30.0),
    "zoom": lambda picture: images.zoom_blur(picture, factors=[1.0, 1.1, 1.2]),
    "glass": lambda picture: images.glass_blur(picture, sigma=1.0, max_shift=2, passes=2, rng=np.random.default_rng(0)),
}


@pytest.mark.parametrize("blur", BLURS.values(), ids=BLURS)
def test_a_blur_leaves_a_plain_picture_as_it_is(blur):
    assert np.array_equal(blur(plain()), plain())


def test_a_gaussian_spreads_a_dot_by_its_own_weights():
    """With sigma 1, weights 1, e^-1/2, e^-2, ... over their sum 2.5066: 0.39894 and 0.24197 in each direction."""
    blurred = images.gaussian_blur(dot(), sigma=1.0)
    assert blurred[4, 4, 0] == round(240 * 0.39894**2)
    assert blurred[4, 5, 0] == blurred[5, 4, 0] == blurred[3, 4, 0] == round(240 * 0.39894 * 0.24197)


def test_a_gaussian_keeps_the_light_and_its_width_is_sigma():
    picture = np.zeros((41, 41, 3), np.uint8)
    picture[20, 20] = 255
    row = images.gaussian_blur(np.repeat(picture[20:21], 41, axis=0), sigma=3.0)[20, :, 0].astype(float)
    offsets = np.arange(41) - 20
    assert row.sum() == pytest.approx(255, abs=6)
    assert np.sqrt((row * offsets**2).sum() / row.sum()) == pytest.approx(3.0, rel=0.03)


def test_motion_at_angle_zero_gathers_from_the_right_and_at_ninety_from_below():
    """Weights 1, e^-1/2, e^-2 over their sum 1.74187: 0.5741, 0.3482, 0.0777."""
    for angle, seen in ((0.0, lambda step: (4, 4 - step)), (90.0, lambda step: (4 - step, 4))):
        blurred = images.motion_blur(dot(), radius=1, sigma=1.0, angle_deg=angle)
        expected = np.zeros((9, 9), int)
        for step, weight in enumerate((0.57410, 0.34821, 0.07769)):
            expected[seen(step)] = round(240 * weight)
        assert np.array_equal(blurred[..., 0], expected)


SHARP = 0.1  # a deviation so small that the blurs of frosted glass change nothing


def numbered(size):
    """A picture in which every pixel has its own colour: row, column, 0."""
    picture = np.zeros((size, size, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(size)[:, None], np.arange(size)
    return picture


def test_frosted_glass_exchanges_near_pixels_and_loses_none():
    """One pass over a picture of 3 x 3 with shifts of one visits the last pixel alone, and exchanges it or nothing."""
    rng, picture = np.random.default_rng(3), numbered(3)
    partners = set()
    for _ in range(40):
        glass = images.glass_blur(picture, sigma=SHARP, max_shift=1, passes=1, rng=rng)
        changed = set(zip(*np.nonzero((glass != picture).any(axis=2)), strict=True))
        assert changed == set() or (len(changed) == 2 and (2, 2) in changed)
        partners |= changed - {(2, 2)}
    assert partners == {(1, 1), (1, 2), (2, 1)}
    larger = numbered(20)
    glass = images.glass_blur(larger, sigma=SHARP, max_shift=3, passes=2, rng=rng)
    assert sorted(map(tuple, glass.reshape(-1, 3))) == sorted(map(tuple, larger.reshape(-1, 3)))
    assert not np.array_equal(glass, larger)
    assert np.array_equal(glass[0], larger[0])  # beyond the reach of the shifts


def test_frosted_glass_is_blurred_before_and_after():
    through = images.glass_blur(dot(21), sigma=1.5, max_shift=1, passes=0, rng=np.random.default_rng(0))
    assert np.array_equal(through, images.gaussian_blur(images.gaussian_blur(dot(21), sigma=1.5), sigma=1.5))


def test_zoom_factors_are_those_of_libero_plus():
    assert images.zoom_factors(1.11, 0.01) == [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08, 1.09, 1.1]
    assert images.zoom_factors(1.26, 0.02)[-1] == 1.24
    assert images.zoom_factors(1.56, 0.03)[-1] == 1.54


def test_a_zoom_by_two_shows_the_middle_half_and_is_averaged_with_the_original():
    """Column c of the enlarged picture is column 4 + (c + 1/2) / 2 - 1/2 of the original's sixteen."""
    columns = np.arange(16)
    picture = np.broadcast_to((10 * columns)[None, :, None], (16, 16, 3)).astype(np.uint8)
    expected = (10 * columns + 10 * (4 + (columns + 0.5) / 2 - 0.5)) / 2
    assert images.zoom_blur(picture, factors=[2.0])[5, :, 1] == pytest.approx(expected, abs=1)


def test_fog_is_scaled_so_that_a_picture_gets_no_brighter():
    """Of a plain grey of 51, a fifth, and amplitude 1: (0.2 + f) 0.2 / (0.2 + 1), in grey levels 42.5 (0.2 + f)."""
    cloud = images.fractal(16, decay=2.0, rng=np.random.default_rng(1))
    fogged = images.fog(plain(51, 16), amplitude=1.0, decay=2.0, rng=np.random.default_rng(1))
    assert fogged[..., 0] == pytest.approx(42.5 * (0.2 + cloud), abs=0.5001)
    assert fogged.max() == 51


def test_fog_of_no_density_changes_nothing_and_dense_fog_is_the_cloud():
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(images.fog(picture, amplitude=0.0, decay=2.0, rng=np.random.default_rng(1)), picture)
    picture[0, 0] = 255
    cloud = images.fractal(16, decay=2.0, rng=np.random.default_rng(1))
    dense = images.fog(picture, amplitude=1e9, decay=2.0, rng=np.random.default_rng(1))
    assert np.abs(dense[..., 0] - 255 * cloud).max() <= 0.5
    assert (dense[..., 0] == dense[..., 1]).all()


def test_a_cloud_covers_nought_to_one_and_is_smoother_the_faster_its_small_structures_decay():
    rough, smooth = (images.fractal(64, decay=decay, rng=np.random.default_rng(3)) for decay in (1.1, 3.0))
    for cloud in (rough, smooth):
        assert cloud.shape == (64, 64)
        assert (cloud.min(), cloud.max()) == (0.0, 1.0)
    assert np.abs(np.diff(smooth)).mean() < np.abs(np.diff(rough)).mean() / 2


def test_the_fog_of_any_size_of_picture_has_its_shape():
    for size in (3, 100, 300):
        assert images.fog(plain(50, size), amplitude=1.0, decay=2.0, rng=np.random.default_rng(0)).shape[0] == size


def test_noise_has_the_stated_deviation_in_grey_levels():
    noisy = images.pixel_noise(plain(128, 200), sigma=20.0, rng=np.random.default_rng(0)).astype(float)
    assert noisy.mean() == pytest.approx(128, abs=0.5)
    assert noisy.std() == pytest.approx(20, rel=0.02)


def test_worse_compression_is_farther_from_the_original():
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    errors = [np.abs(images.compress(picture, quality=q).astype(int) - picture).mean() for q in (90, 25, 7)]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(("place", "corner"), [((0.0, 0.0), (0, 0)), ((1.0, 0.0), (0, 15)), ((0.5, 1.0), (15, 7))])
def test_a_square_covers_its_share_where_it_is_told(place, corner):
    covered = images.occlude(plain(7, 20), share=0.0625, place=place)  # 5 by 5 of 20 by 20
    top, left = corner
    if place == (0.5, 1.0):
        left = 8  # 7.5 rounds to the even number
    expected = plain(7, 20)
    expected[top : top + 5, left : left + 5] = 128
    assert np.array_equal(covered, expected)


def test_no_operation_writes_into_the_picture_it_was_given():
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    before = picture.copy()
    rng = np.random.default_rng(0)
    for blur in BLURS.values():
        blur(picture)
    images.pixel_noise(picture, sigma=9.0, rng=rng)
    images.fog(picture, amplitude=1.0, decay=2.0, rng=rng)
    images.compress(picture, quality=10)
    images.occlude(picture, share=0.2, place=(0.5, 0.5))
    assert np.array_equal(picture, before)


@pytest.mark.parametrize("form", FORMS)
def test_a_pattern_lies_between_its_two_colours(form):
    colours = np.array([[10, 200, 30], [110, 100, 30]], np.uint8)
    painted = pattern(form, colours, height=32, width=16, rng=np.random.default_rng(0))
    assert painted.shape == (32, 16, 3)
    assert (painted >= colours.min(axis=0)).all() and (painted <= colours.max(axis=0)).all()


def test_checks_and_stripes_give_both_colours_half_of_the_surface():
    colours = np.array([[0, 0, 0], [200, 200, 200]], np.uint8)
    for form in ("checks", "stripes"):
        assert pattern(form, colours, height=64, width=64, rng=np.random.default_rng(0)).mean() == 100
    checks = pattern("checks", colours, height=64, width=64, rng=np.random.default_rng(0))
    assert checks[0, 0, 0] != checks[0, 8, 0] != checks[8, 8, 0] != checks[8, 0, 0]


def test_a_blend_of_a_fifth_is_a_fifth_of_the_way():
    assert blend(plain(100), plain(200), 0.2).tolist() == plain(120).tolist()
    assert np.array_equal(blend(plain(100), plain(200), 1.0), plain(200))
