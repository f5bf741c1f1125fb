import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vla_rl.policies.image_transforms import (
    central_crop,
    frame_transform,
    jpeg_round_trip,
    lanczos3,
    render_size,
    resample,
    resampling_matrix,
    to_frames,
)

STORED = Path(__file__).parent / "data" / "image_transforms.npz"


def picture(size, seed=0):
    """A smooth coloured picture with some edges, as a camera sees."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).copy()
    smooth[size // 4 : size // 2, size // 3 :, 1] //= 2
    return smooth


def difference(first, second):
    return np.abs(first.astype(int) - second.astype(int))


@pytest.mark.parametrize("name", ["oft", "rlinf"])
def test_results_equal_the_stored_ones(name):
    stored = np.load(STORED)
    transform = frame_transform(name, output_size=56)
    result = transform(stored["frames"])
    assert difference(result, stored[name]).max() <= 1
    assert (difference(result, stored[name]) > 0).mean() < 0.001


@pytest.mark.parametrize(("output_size", "rendered"), [(224, 256), (112, 128), (56, 64), (98, 112)])
def test_sizes_keep_the_proportion_of_the_published_policies(output_size, rendered):
    transform = frame_transform("oft", output_size=output_size)
    assert transform.input_size == rendered == render_size(output_size)
    frames = np.stack([picture(rendered), picture(rendered, seed=1)])
    result = transform(frames)
    assert result.shape == (2, output_size, output_size, 3) and result.dtype == np.uint8


@pytest.mark.parametrize("name", ["oft", "rlinf"])
def test_each_image_of_a_batch_is_transformed_alone_and_pickling_changes_nothing(name):
    transform = frame_transform(name, output_size=112)
    frames = np.stack([picture(128, seed) for seed in range(3)])
    batch = pickle.loads(pickle.dumps(transform))(frames)
    for frame, result in zip(frames, batch, strict=True):
        np.testing.assert_array_equal(transform(frame[None])[0], result)


@pytest.mark.parametrize("name", ["oft", "rlinf"])
@pytest.mark.parametrize("level", [0, 7, 128, 255])
def test_an_even_grey_stays_even(name, level):
    transform = frame_transform(name, output_size=56)
    frames = np.full((1, 64, 64, 3), level, dtype=np.uint8)
    assert (transform(frames) == level).all()


def test_lanczos_resizing_agrees_with_pillow_within_its_rounding():
    frame = picture(256)
    ours = to_frames(resample(frame[None], resampling_matrix(256, 224, kernel=lanczos3, support=3.0)))[0]
    pillow = np.asarray(Image.fromarray(frame).resize((224, 224), Image.Resampling.LANCZOS))
    assert difference(ours, pillow).max() <= 1  # Pillow rounds between its two passes


def test_bicubic_resizing_agrees_with_torch():
    frame = picture(256)
    ours = frame_transform("rlinf", output_size=224)(frame[None])[0]
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, size=(224, 224), mode="bicubic", antialias=True)
    theirs = resized.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
    assert difference(ours, theirs).max() <= 1
    assert (difference(ours, theirs) > 0).mean() < 0.001


def test_weights_of_a_resize_by_hand():
    # Two pixels to one: both lie 0.5 from the centre, 0.25 of the widened kernel, so each has half the weight.
    assert resampling_matrix(2, 1, kernel=lanczos3, support=3.0).tolist() == [[0.5, 0.5]]
    np.testing.assert_allclose(resampling_matrix(5, 5, kernel=lanczos3, support=3.0), np.eye(5), atol=1e-16)


def test_the_crop_shows_the_central_ninety_percent_of_the_area():
    # On a ramp of one level per pixel, output pixel i lies at (1 - sqrt(0.9)) / 2 * 223 + i * sqrt(0.9).
    ramp = np.broadcast_to(np.arange(224, dtype=np.float32), (1, 3, 224, 224)).copy()
    cropped = central_crop(ramp)[0, 0]
    positions = (1 - 0.9**0.5) / 2 * 223 + np.arange(224) * 0.9**0.5
    np.testing.assert_array_equal(cropped, cropped[:1].repeat(224, axis=0))
    assert np.abs(cropped[0] - np.floor(positions / 255 * 255.5)).max() <= 1
    assert (cropped[0, 0], cropped[0, -1]) == (5.0, 217.0)


def test_the_jpeg_round_trip_costs_colour_detail_but_little_brightness():
    frame = picture(256)
    decoded = jpeg_round_trip(frame)
    assert decoded.shape == frame.shape
    assert 0.1 < difference(decoded, frame).mean() < 3.0


def test_frames_of_another_size_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 256, 256, 3\); found uint8 \(1, 224, 224, 3\)"):
        frame_transform("oft", output_size=224)(np.zeros((1, 224, 224, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"'bilinear' is unknown; choose one of \['oft', 'rlinf'\]"):
        frame_transform("bilinear", output_size=224)
