import json

import pytest
import torch

from vla_rl.policies.openvla_oft.pixels import (
    PixelNormalization,
    normalization_tensors,
    normalize_pixels,
    read_pixel_normalization,
)


def test_constants_are_the_ones_rounded_to_bfloat16():
    mean, std = normalization_tensors(PixelNormalization())
    familiar = torch.tensor([[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]]), torch.tensor([[0.229, 0.224, 0.225], [0.5] * 3])
    assert torch.equal(mean.flatten(1), familiar[0].bfloat16().float())
    assert torch.equal(std.flatten(1), familiar[1].bfloat16().float())


def test_channels_stand_image_by_image_first_for_dinov2_then_for_siglip():
    frames = torch.zeros(1, 2, 1, 1, 3, dtype=torch.uint8)
    frames[0, 1] = torch.tensor([255, 51, 0])  # second image: red 1, green 0.2, blue 0
    channels = normalize_pixels(frames, *normalization_tensors(PixelNormalization())).flatten().tolist()
    assert channels[3:6] == [-1.0, -1.0, -1.0]
    dinov2 = [(1 - 0.484375) / 0.228515625, (0.2 - 0.455078125) / 0.2236328125, -0.40625 / 0.224609375]
    assert channels[6:] == pytest.approx([*dinov2, 1.0, -0.6, -1.0], abs=1e-6)


def test_constants_are_read_from_where_training_took_them(tmp_path):
    blocks = [{"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}, {"mean": [0, 0, 0], "std": [1, 1, 1]}]
    content = {"means": [[9, 9, 9]] * 2, "stds": [[9, 9, 9]] * 2, "tvf_normalize_params": blocks}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    read = read_pixel_normalization(tmp_path)
    assert (read.mean[0], read.std[0]) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_a_file_without_two_entries_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        '{"tvf_normalize_params": [{"mean": [1, 2, 3], "std": [1, 1, 1]}]}'
    )
    with pytest.raises(ValueError, match="two entries"):
        read_pixel_normalization(tmp_path)


@pytest.mark.parametrize("changes", [{"std": [1, 0, 1]}, {"std": [1, float("inf"), 1]}, {"mean": [float("nan"), 0, 0]}])
def test_constants_that_give_no_numbers_are_refused(tmp_path, changes):
    blocks = [{"mean": [0, 0, 0], "std": [1, 1, 1]}, {"mean": [0, 0, 0], "std": [1, 1, 1], **changes}]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"tvf_normalize_params": blocks}))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: .*expected finite numbers, and deviations"):
        read_pixel_normalization(tmp_path)
