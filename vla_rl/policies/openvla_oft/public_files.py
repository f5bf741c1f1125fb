"""Small files that the original's processor reads, written for a checkpoint that is made from a seed.

A checkpoint directory's own files are copied unchanged. `auto_map`, which names code in the folder, is left out: no
code is written, and the original code adds its own when it loads a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.files import atomic_write_json
from vla_rl.policies.openvla_oft.config import BOS_ID, PAD_ID, STOP_ID, OFTConfig
from vla_rl.policies.openvla_oft.pixels import NUM_CHANNELS, PixelNormalization

_PROCESSOR = "PrismaticProcessor"
_SPECIAL_TOKENS = {"unk_token": ("<unk>", 0), "bos_token": ("<s>", BOS_ID), "eos_token": ("</s>", STOP_ID)}
_SPECIAL_TOKENS |= {"pad_token": ("<PAD>", PAD_ID)}
_BICUBIC = 3  # PIL's number
# Normalisation constants of timm's two vision transformers. The processor rounds them to bfloat16, as training did.
_MEANS = [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]]
_STDS = [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]]


def write_processor_files(directory: Path, config: OFTConfig, pixels: PixelNormalization) -> None:
    """Write everything but weights, `config.json`, statistics and `tokenizer.json`."""
    atomic_write_json(directory / "preprocessor_config.json", _preprocessor(config.image_size, pixels))
    atomic_write_json(directory / "processor_config.json", {"processor_class": _PROCESSOR})
    atomic_write_json(
        directory / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": BOS_ID,
            "eos_token_id": STOP_ID,
            "pad_token_id": PAD_ID,
            "transformers_version": "4.40.1",
        },
    )
    atomic_write_json(directory / "added_tokens.json", {"<PAD>": PAD_ID})
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tokens = {name: {"content": content, **flags} for name, (content, _) in _SPECIAL_TOKENS.items()}
    atomic_write_json(directory / "special_tokens_map.json", tokens)
    decoder = {str(number): {**tokens[name], "special": True} for name, (_, number) in _SPECIAL_TOKENS.items()}
    atomic_write_json(
        directory / "tokenizer_config.json",
        {
            "added_tokens_decoder": decoder,
            **{name: content for name, (content, _) in _SPECIAL_TOKENS.items()},
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.llama.max_position_embeddings,
            "padding_side": "right",
            "processor_class": _PROCESSOR,
            "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json unchanged
        },
    )


def _preprocessor(image_size: int, pixels: PixelNormalization) -> dict[str, Any]:
    """Return the content of preprocessor_config.json: two lists of everything, for DINOv2 and SigLIP."""
    square = [image_size, image_size]
    resize = {"antialias": True, "interpolation": _BICUBIC, "max_size": None, "size": square}
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[NUM_CHANNELS, *square]] * 2,
        "interpolations": ["bicubic"] * 2,
        "means": _MEANS,
        "processor_class": _PROCESSOR,
        "stds": _STDS,
        "tvf_crop_params": [{"output_size": square}] * 2,
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
        "tvf_normalize_params": [
            {"inplace": False, "mean": list(mean), "std": list(std)}
            for mean, std in zip(pixels.mean, pixels.std, strict=True)
        ],
        "tvf_resize_params": [resize] * 2,
        "use_fused_vision_backbone": True,
    }
