"""FLOPs of a decision against numbers worked out by hand."""

import pytest

from vla_rl.policies.openvla_oft.config import LlamaDims, OFTConfig, ViTConfig
from vla_rl.policies.openvla_oft.flops import decision_flops


def test_a_decision_of_one_image_takes_4_9_tflop_forward_and_9_4_in_an_update():
    """342 tokens through 12.95 GFLOP of weights each, 0.06 TFLOP of attention, 0.40 TFLOP of vision and projector."""
    flops = decision_flops(OFTConfig(), num_tokens=342, num_images=1)
    assert flops.llama == pytest.approx(342 * 12.95e9 + 524_288 * 342**2, rel=1e-3)
    assert flops.forward == pytest.approx(4.89e12, rel=2e-3)
    assert flops.update(train_backbone=False) == pytest.approx(9.4e12, rel=5e-3)
    assert flops.update(train_backbone=True) == pytest.approx(3 * 4.89e12, rel=2e-3)


def test_a_network_that_can_be_counted_on_paper():
    """Llama, 1 layer, d 2, m 3, T 5: 5 2 (16 + 18) + 4 25 2 = 540. One patch per image, two transformers of one working
    block, w 2, n 4: 2 (16 + 16) + 8 = 72 and a patch of 2 3 196 2 = 2352 each, and the projector, v 4: 256 is 1 here,
    2 (64 + 32 + 4) = 200. Two images: 2 (2 2424 + 200) = 10096.
    """
    vit = ViTConfig(2, 2, 1, 4, num_prefix_tokens=0, layer_scale=False, attention_pool=False)
    llama = LlamaDims(
        hidden_size=2, intermediate_size=3, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )
    flops = decision_flops(OFTConfig(image_size=14, dinov2=vit, siglip=vit, llama=llama), num_tokens=5, num_images=2)
    assert (flops.llama, flops.vision) == (540.0, 10096.0)
    assert flops.update(train_backbone=False) == 2 * 540 + 10096
