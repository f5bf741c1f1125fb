"""The network against stored numbers, the tiny model's tokenizer and its statistics."""

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_rl.policies.openvla_oft import OpenVLAOFT
from vla_rl.policies.openvla_oft.checkpoint_reader import empty_model
from vla_rl.policies.openvla_oft.profiles import PROFILES
from vla_rl.policies.openvla_oft.prompts import prompt_table, prompt_text, tokenize_prompt
from vla_rl.policies.openvla_oft.source import find_source
from vla_rl.policies.openvla_oft.tiny import tiny_config
from vla_rl.policies.openvla_oft.tiny_tokenizer import tiny_tokenizer, tiny_tokenizer_json
from vla_rl.policies.parameters import move_buffers, set_parameter

STORED = Path(__file__).parent / "data" / "openvla_oft_outputs.npz"
LIBERO_90 = "pick up the alphabet soup and put it in the basket"


def numbers(name, shape, scale):
    """Numbers that depend on the name alone, the same on every machine."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy((generator.standard_normal(shape) * scale).astype(np.float32))


def numbered_model(profile="simplevla"):
    """A small network with a projector of proprioception and both heads, whose weights are made here."""
    model = empty_model(
        OpenVLAOFT, tiny_config(image_size=28), PROFILES[profile], proprio=True, l1_head=True, dtype=torch.float32
    )
    for name, parameter in list(model.named_parameters()):
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        value = numbers(name, tuple(parameter.shape), 0.1 if parameter.dim() == 1 else fan_in**-0.5)
        if parameter.dim() == 1 and name.endswith(("weight", "scale_factor")):
            value += 1.0
        set_parameter(model, name, value)
    move_buffers(model, torch.device("cpu"))
    return model.eval()


PROMPT = torch.tensor([[1, 512, 29901, 1724, 3158, 881, 278, 19964, 29973, 13, 3744, 29901]])


@torch.no_grad()
def outputs(model):
    """What is stored: a thinned-out look at every stage, for one image and for two with proprioception."""
    pixels = numbers("pixels", (1, 12, 28, 28), 1.0)
    discrete = model.action_hidden(pixels[:, :6], PROMPT)
    regression = model.action_hidden(pixels, PROMPT, proprio=numbers("proprio", (1, 8), 0.5))
    return {
        "features": model.vision_features(pixels)[0, :, ::8],
        "discrete_hidden": discrete[0, ::5, ::4],
        "logits": model.action_logits(discrete)[0, ::11, ::16],
        "l1_hidden": regression[0, ::5, ::4],
        "l1_actions": model.l1_actions(regression)[0],
    }


def test_outputs_equal_those_of_the_original_code():
    """Against what the original code gave with the weights and inputs of this file.

    It ran once, in float32 on a CPU, with torch 2.14.1 and timm 0.9.10: moojink/openvla-oft at 213c5ff and
    moojink/transformers-openvla-oft at bc339d9, whose `predict_action` was called for one image, and for two images
    with proprioception and its L1 head. With the kernels of that CPU (AVX2) the native network gives the same bits;
    between CPUs of different vector width up to 8.6e-6 was seen (in the L1 actions).
    """
    stored = np.load(STORED)
    computed = outputs(numbered_model())
    assert set(stored.files) == set(computed)
    for name, value in computed.items():
        np.testing.assert_allclose(value.numpy(), stored[name], rtol=0, atol=2e-5, err_msg=name)


@torch.no_grad()
@pytest.mark.parametrize(("images", "profile"), [(1, "simplevla"), (1, "rlinf"), (2, "oft_l1")])
def test_a_right_padded_batch_equals_its_members_alone(images, profile):
    """Prompts of 12, 7 and 10 tokens, each with pictures and proprioception of its own.

    The bound is a share of the largest hidden, about 4. Seen: 9.5e-7, which is 3.8e-6 in absolute terms.
    """
    model, lengths = numbered_model(profile), [12, 7, 10]
    pixels = numbers("pixels", (3, 6 * images, 28, 28), 1.0)
    proprio = numbers("proprio", (3, 8), 0.5) if images == 2 else None
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
    batch = torch.where(mask.bool(), PROMPT, 32000)
    together = model.action_hidden(pixels, batch, mask, proprio=proprio)
    for row, length in enumerate(lengths):
        fed = None if proprio is None else proprio[row : row + 1]
        alone = model.action_hidden(pixels[row : row + 1], PROMPT[:, :length], proprio=fed)
        assert (together[row] - alone[0]).abs().max() <= 5e-6 * alone.abs().max()


@pytest.mark.parametrize("shape", [(1, 0, 28, 28), (1, 5, 28, 28), (1, 6, 28, 14), (1, 6, 14, 28), (6, 28, 28)])
def test_images_of_another_shape_are_refused_by_it(shape):
    with pytest.raises(ValueError, match=re.escape(f"{shape}; expected 6 channels per image and 28 pixels a side")):
        numbered_model().action_hidden(torch.zeros(shape), PROMPT)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"pixel_values": (3, 6, 28, 28)},
            "pixel_values is (3, 6, 28, 28); expected 2 rows, as many as there are",
        ),
        ({"proprio": (1, 8)}, "proprio is (1, 8); expected (2, 8): a state per prompt"),
        ({"proprio": (2, 7)}, "proprio is (2, 7); expected (2, 8): a state per prompt"),
        ({"attention_mask": (1, 12)}, "attention_mask is (1, 12); expected the shape of input_ids, (2, 12)"),
        ({"attention_mask": (2, 11)}, "attention_mask is (2, 11); expected the shape of input_ids, (2, 12)"),
    ],
)
def test_inputs_that_do_not_fit_the_prompts_are_refused_by_shape(changed, told):
    shapes = {"pixel_values": (2, 6, 28, 28), "attention_mask": (2, 12), "proprio": (2, 8)} | changed
    with pytest.raises(ValueError, match=re.escape(told)):
        numbered_model().action_hidden(input_ids=PROMPT.expand(2, -1), **{k: torch.ones(v) for k, v in shapes.items()})


@torch.no_grad()
def test_a_prompt_s_ids_may_have_32_bits():
    model, pixels = numbered_model(), numbers("pixels", (1, 6, 28, 28), 1.0)
    hidden = model.action_hidden(pixels, PROMPT)
    assert torch.equal(model.action_hidden(pixels, PROMPT.int()), hidden)


def test_the_norms_of_each_part_have_their_own_epsilon():
    # Too small for any output to show within rounding, so they are asserted one by one.
    model = numbered_model()
    norms = {name: module.eps for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    assert {eps for name, eps in norms.items() if name.startswith("vision_backbone")} == {1e-6}
    assert {eps for name, eps in norms.items() if name.startswith("action_head")} == {1e-5}
    llama = model.language_model.model
    assert llama.norm.variance_epsilon == llama.layers[0].input_layernorm.variance_epsilon == 1e-6


def test_stop_is_seen_by_every_position():
    with_stop, without = outputs(numbered_model("simplevla")), outputs(numbered_model("rlinf"))
    moved = (with_stop["discrete_hidden"] - without["discrete_hidden"]).abs().amax(dim=1)
    assert (moved > 1e-5).all()


def test_the_tokenizer_puts_llamas_special_ids_in_their_places():
    tokenizer = tiny_tokenizer()
    ids = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>", "▁", "<PAD>", "<0x0A>")}
    assert ids == {"<s>": 1, "</s>": 2, "▁": 29871, "<PAD>": 32000, "<0x0A>": 13}
    assert len(tiny_tokenizer_json()) < 20_000


def test_a_prompt_starts_with_bos_and_ends_with_one_lone_space():
    tokenizer = tiny_tokenizer()
    ids = tokenize_prompt(tokenizer, "Open the Drawer")
    assert ids == tokenize_prompt(tokenizer, "open the drawer")
    assert ids[0] == 1 and ids[-1] == 29871 and ids.count(1) == 1 and 2 not in ids
    # BOS, eight words and the colon of the question, three words of the task, "?", newline, "O" "u" "t", ":", space.
    assert len(ids) == 1 + 9 + 3 + 2 + 3 + 1 + 1
    assert not set(ids) & set(range(31744, 32001))


def test_every_word_of_libero_is_one_token_and_other_text_is_kept_in_pieces():
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.encode(LIBERO_90).tokens
    assert tokens == ["<s>"] + ["▁" + word for word in LIBERO_90.split()]
    strange = tokenizer.encode("grasp Ünknown ☃")
    assert 0 not in strange.ids
    assert bytes.fromhex("E29883").decode() == "☃"
    assert strange.tokens[-3:] == ["<0xE2>", "<0x98>", "<0x83>"]


def test_the_prompt_is_the_sentence_of_openvla():
    assert prompt_text("Open the Drawer") == "In: What action should the robot take to open the drawer?\nOut:"


def test_a_prompt_table_pads_on_the_right_and_knows_when_it_need_not():
    tokenizer = tiny_tokenizer()
    table = prompt_table(tokenizer, ("open the drawer", "push the plate to the front of the stove"))
    assert table.distinct_lengths == (table.lengths[0], table.lengths[0] + 6)
    assert table.ids[0, table.lengths[0] - 1] == 29871 and (table.ids[0, table.lengths[0] :] == 32000).all()
    assert len(prompt_table(tokenizer, ("open the drawer", "push the plate")).distinct_lengths) == 1


def test_a_tokenizer_without_bos_is_refused():
    document = json.loads(tiny_tokenizer_json())
    document["post_processor"] = None
    from tokenizers import Tokenizer

    with pytest.raises(ValueError, match=r"expected BOS \(1\) first"):
        prompt_table(Tokenizer.from_str(json.dumps(document)), ("open the drawer",))


def selected_statistics(key):
    return find_source("tiny", profile="auto", image_size=None, proprio=True).dataset_statistics(key)


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"])
def test_every_suite_has_statistics_for_the_tiny_model(suite):
    selected = selected_statistics(suite)
    assert selected.key == suite + "_no_noops"
    assert selected.action.mask.tolist() == [True] * 6 + [False]
    assert selected.proprio is not None and selected.proprio.q01.shape == (8,)
    assert (selected.action.q99 > selected.action.q01).all() and (selected.proprio.q99 > selected.proprio.q01).all()


def test_published_quantiles_are_the_published_ones():
    goal = selected_statistics("libero_goal").action
    np.testing.assert_allclose(goal.q01[3:6], [-0.15107143, -0.16392857, -0.137775], atol=5e-9)
    long = selected_statistics("libero_10").proprio
    assert long is not None and long.q99[3] == pytest.approx(3.30354245, abs=5e-9)


def test_a_remark_is_no_data_set():
    with pytest.raises(ValueError, match="no normalisation statistics for '_source'"):
        selected_statistics("_source")


def test_importing_the_builders_imports_neither_transformers_nor_peft():
    code = (
        "import sys, vla_rl.policies.kinds, vla_rl.policies.mlp.network, vla_rl.policies.image_transforms;"
        "print(sorted({'transformers', 'peft', 'accelerate', 'tokenizers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
