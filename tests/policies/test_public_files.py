"""An export of random weights has what the original code reads of a folder, and nobody's tokenizer."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from vla_rl.policies.openvla_oft import OpenVLAOFT
from vla_rl.policies.openvla_oft.checkpoint_metadata import write_metadata
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint, write_network
from vla_rl.policies.openvla_oft.config import OFTConfig, config_to_json
from vla_rl.policies.openvla_oft.prompts import prompt_text
from vla_rl.policies.openvla_oft.source import find_checkpoint, find_source
from vla_rl.policies.openvla_oft.tiny_tokenizer import tiny_tokenizer

# What moojink/openvla-oft (commit 213c5ff) reads of a local folder: experiments/robot/openvla_utils.py get_vla,
# get_processor and _load_dataset_stats; prismatic/extern/hf/configuration_prismatic.py PrismaticConfig.__init__ and
# OpenVLAConfig.__init__; prismatic/extern/hf/modeling_prismatic.py PrismaticForConditionalGeneration.__init__ and
# OpenVLAForActionPrediction.__init__; prismatic/extern/hf/processing_prismatic.py PrismaticImageProcessor.__init__. The
# values are those of moojink/openvla-7b-oft-finetuned-libero-10. `auto_map` is written by the code itself.
CONFIG = {
    "arch_specifier": "no-align+fused-gelu-mlp",
    "architectures": ["OpenVLAForActionPrediction"],
    "hf_llm_id": "meta-llama/Llama-2-7b-hf",
    "image_resize_strategy": "resize-naive",
    "image_sizes": [224, 224],
    "llm_backbone_id": "llama2-7b-pure",
    "llm_max_length": 2048,
    "model_type": "openvla",
    "n_action_bins": 256,
    "output_projector_states": False,
    "pad_to_multiple_of": 64,
    "pad_token_id": 32000,
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None],
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_fused_vision_backbone": True,
    "vision_backbone_id": "dinosiglip-vit-so-224px",
}
TEXT_CONFIG = {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064}
PREPROCESSOR = {
    "image_processor_type": "PrismaticImageProcessor",
    "image_resize_strategy": "resize-naive",
    "input_sizes": [[3, 224, 224], [3, 224, 224]],
    "interpolations": ["bicubic", "bicubic"],
    "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
    "processor_class": "PrismaticProcessor",
    "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
    "tvf_crop_params": [{"output_size": [224, 224]}, {"output_size": [224, 224]}],
    "tvf_do_letterbox": False,
    "tvf_letterbox_fill": None,
    "tvf_normalize_params": [
        {
            "inplace": False,
            "mean": [0.484375, 0.455078125, 0.40625],
            "std": [0.228515625, 0.2236328125, 0.224609375],
        },
        {"inplace": False, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    ],
    "tvf_resize_params": [{"antialias": True, "interpolation": 3, "max_size": None, "size": [224, 224]}] * 2,
    "use_fused_vision_backbone": True,
}
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
OTHERS = {
    "processor_config.json": {"processor_class": "PrismaticProcessor"},
    "generation_config.json": {
        "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32000,
        "transformers_version": "4.40.1",
    },
    "added_tokens.json": {"<PAD>": 32000},
    "special_tokens_map.json": {
        f"{name}_token": {"content": content, **FLAGS}
        for name, content in (("bos", "<s>"), ("eos", "</s>"), ("pad", "<PAD>"), ("unk", "<unk>"))
    },
}  # fmt: skip


def content(path):
    return json.loads(path.read_text())


@pytest.fixture
def large(tmp_path):
    """The small files of `random-7b`, whose sizes are those of the published checkpoint."""
    source = find_source("random-7b", profile="auto", image_size=None, proprio=True)
    write_metadata(source, tmp_path, dtype=torch.bfloat16)
    return tmp_path


def test_random_weights_of_the_real_size_are_described_as_a_published_checkpoint_is(large):
    config = content(large / "config.json")
    assert {name: config[name] for name in CONFIG} == CONFIG
    assert {name: config["text_config"][name] for name in TEXT_CONFIG} == TEXT_CONFIG
    assert config.keys() == CONFIG.keys() | {"norm_stats", "text_config"}
    assert config["norm_stats"] == content(large / "dataset_statistics.json")
    assert content(large / "preprocessor_config.json") == PREPROCESSOR
    for name, expected in OTHERS.items():
        assert content(large / name) == expected


def test_a_written_config_names_nothing_that_the_original_refuses():
    """PrismaticConfig and its image processor look these up in tables of theirs."""
    config = config_to_json(OFTConfig(dtype="float32"))
    assert config["vision_backbone_id"] == "dinosiglip-vit-so-224px"
    assert config["llm_backbone_id"] == "llama2-7b-pure"
    assert config["text_config"]["torch_dtype"] == config["torch_dtype"] == "float32"


def test_the_tokenizer_of_an_export_is_found_by_transformers_and_is_our_own(large):
    tokenizer = AutoTokenizer.from_pretrained(str(large), trust_remote_code=False)
    text = prompt_text("put the wine bottle on the rack")
    assert tokenizer(text).input_ids == tiny_tokenizer().encode(text).ids
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    assert tokens == (1, 2, 32000, 0)
    assert tokenizer.padding_side == "right"
    assert GenerationConfig.from_pretrained(str(large)).pad_token_id == 32000
    assert not list(large.glob("*.model"))  # Llama's, which is licensed, is not written


def test_the_tiny_model_s_files_speak_of_its_own_image_size(tmp_path, module_build):
    write_checkpoint(module_build(lora=None), tmp_path, step=1)
    preprocessor = content(tmp_path / "preprocessor_config.json")
    assert preprocessor.keys() == PREPROCESSOR.keys()
    assert preprocessor["input_sizes"] == [[3, 28, 28], [3, 28, 28]]
    assert preprocessor["tvf_resize_params"][1]["size"] == preprocessor["tvf_crop_params"][0]["output_size"] == [28, 28]
    assert CONFIG.keys() <= content(tmp_path / "config.json").keys()


def test_a_checkpoint_directory_s_own_files_are_copied_byte_by_byte(tmp_path, module_build):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_checkpoint(module_build(lora=None), first, step=1)
    own = {"tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}', "processor_config.json": '{ "mine":1}'}
    own |= {"tokenizer.model": "bytes", "modeling_prismatic.py": "code", "generation_config.json": "{}"}
    for name, text in own.items():
        (first / name).write_text(text)
    (first / "added_tokens.json").unlink()
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    source = find_checkpoint(first, profile="auto")
    model = source.empty_network(OpenVLAOFT, dtype=source.stored_dtype)
    source.fill(model, seed=0, device=torch.device("cpu"))
    write_network(model, source, second)
    after = {path.name: path.read_bytes() for path in second.iterdir()}
    weights = {name for name in before if Path(name).suffix in (".safetensors", ".pt")} | {"vla_rl.json"}
    assert before.keys() - weights == after.keys() - weights
    assert all(before[name] == after[name] for name in before.keys() - weights)
