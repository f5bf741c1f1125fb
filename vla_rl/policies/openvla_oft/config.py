"""Dimensions of an OpenVLA-OFT network, all written out, so that no library default can change them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vla_rl.policies.openvla_oft.json_files import is_positive, read_json

TINY = "tiny"  # networks with random weights: scaled down, and of the real size
RANDOM_7B = "random-7b"
BOS_ID = 1
STOP_ID = 2
LONE_SPACE_ID = 29871  # the last prompt token; the first readout is at its position
PAD_ID = 32000
PATCH_SIZE = 14


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """One vision transformer. The last of its `depth` blocks never reaches the output."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    num_prefix_tokens: int  # class token and registers, 0 for none
    layer_scale: bool
    attention_pool: bool  # the checkpoint holds an unused pooling head


DINOV2 = ViTConfig(1024, 24, 16, 4096, num_prefix_tokens=5, layer_scale=True, attention_pool=False)
SIGLIP = ViTConfig(1152, 27, 16, 4304, num_prefix_tokens=0, layer_scale=False, attention_pool=True)
_VIT_SIZES = ("embed_dim", "depth", "num_heads", "mlp_dim")  # fields that a scaled-down one may change
TIMM_MODELS = {"vit_large_patch14_reg4_dinov2.lvd142m": DINOV2, "vit_so400m_patch14_siglip_224": SIGLIP}


# Fields that every OpenVLA-OFT config.json has and this program relies on.
_ARCHITECTURE: dict[str, Any] = {
    "model_type": "openvla",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "use_fused_vision_backbone": True,
    "n_action_bins": 256,
    "pad_to_multiple_of": 64,
    "pad_token_id": PAD_ID,
    "timm_model_ids": list(TIMM_MODELS),
}
# Fields that only the original code reads. The first two are names in its tables, and it refuses others. Sizes in the
# tables are overridden by `image_sizes`.
_FOR_THE_ORIGINAL: dict[str, Any] = {
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "llm_backbone_id": "llama2-7b-pure",
    "hf_llm_id": "meta-llama/Llama-2-7b-hf",
    "image_resize_strategy": "resize-naive",
    "llm_max_length": 2048,
    "output_projector_states": False,
    "timm_override_act_layers": [None, None],
    "transformers_version": "4.40.1",
}
# Values of Llama-2 that text_config may repeat.
_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, slots=True)
class LlamaDims:
    """Llama-2 7B as OpenVLA uses it. `rms_norm_eps` is 1e-6 here, not the 1e-5 of Llama-2's own release."""

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    vocab_size: int = 32064
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


Dims = TypeVar("Dims", ViTConfig, LlamaDims)


@dataclass(frozen=True, slots=True)
class OFTConfig:
    """Dimensions of the whole network. The defaults are those of the public LIBERO checkpoints."""

    image_size: int = 224
    dinov2: ViTConfig = DINOV2
    siglip: ViTConfig = SIGLIP
    llama: LlamaDims = field(default_factory=LlamaDims)
    chunk_size: int = 8
    action_dim: int = 7
    proprio_dim: int = 8
    dtype: str = "bfloat16"  # dtype of the stored weights

    @property
    def num_patches(self) -> int:
        """Return the patch tokens of one image."""
        return (self.image_size // PATCH_SIZE) ** 2

    @property
    def vision_dim(self) -> int:
        """Return the features per patch: both backbones side by side."""
        return self.dinov2.embed_dim + self.siglip.embed_dim

    @property
    def num_action_tokens(self) -> int:
        """Return the readouts per decision."""
        return self.chunk_size * self.action_dim


def read_config(directory: Path) -> OFTConfig:
    """Read the dimensions that `config.json` of a public checkpoint implies.

    Raises:
        ValueError: the file is absent or broken, or describes another architecture.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: not found; a checkpoint directory needs config.json beside its weights")
    raw = read_json(path)
    _check_architecture(raw, path)
    return _config_from_json(raw, path)


def config_to_json(config: OFTConfig) -> dict[str, Any]:
    """Return the content of a `config.json` from which `read_config` gives the same dimensions."""
    text = {"model_type": "llama", "pad_token_id": PAD_ID, "torch_dtype": config.dtype}
    content = {
        **_ARCHITECTURE,
        **_FOR_THE_ORIGINAL,
        "architectures": ["OpenVLAForActionPrediction"],
        "image_sizes": [config.image_size, config.image_size],
        "text_config": {**text, **dataclasses.asdict(config.llama)},
        "torch_dtype": config.dtype,
    }
    if (config.dinov2, config.siglip) != (DINOV2, SIGLIP):  # public checkpoints do not have this key
        content["timm_model_overrides"] = [
            {name: getattr(vit, name) for name in _VIT_SIZES} for vit in (config.dinov2, config.siglip)
        ]
    return content


def _check_architecture(raw: Mapping[str, Any], path: Path) -> None:
    for name, expected in _ARCHITECTURE.items():
        if raw.get(name) != expected:
            raise ValueError(
                f"{path}: {name} is {raw.get(name)!r}, expected {expected!r}; "
                "this program loads OpenVLA-OFT (DINOv2 + SigLIP + Llama-2) and no other architecture"
            )


def _config_from_json(raw: Mapping[str, Any], path: Path) -> OFTConfig:
    sizes: Any = raw.get("image_sizes")
    is_pair = isinstance(sizes, list) and len(sizes) == 2 and sizes[0] == sizes[1]
    if not is_pair or not is_positive(sizes[0], int) or sizes[0] % PATCH_SIZE:
        raise ValueError(f"{path}: image_sizes is {sizes!r}; expected two equal multiples of {PATCH_SIZE}")
    dinov2, siglip = _vits(raw.get("timm_model_overrides") or [{}, {}], path)
    return OFTConfig(
        image_size=sizes[0],
        dinov2=dinov2,
        siglip=siglip,
        llama=_llama_dims(raw.get("text_config") or {}, path),
        # transformers 5 writes `dtype`, earlier versions `torch_dtype`.
        dtype=str(raw.get("torch_dtype") or raw.get("dtype") or "bfloat16"),
    )


def _vits(overrides: object, path: Path) -> tuple[ViTConfig, ViTConfig]:
    """Return the published transformers with the sizes that `timm_model_overrides` gives for scaled-down ones."""
    field_name = "timm_model_overrides"
    if not isinstance(overrides, list) or len(overrides) != 2 or not all(isinstance(each, dict) for each in overrides):
        raise ValueError(f"{path}: {field_name} is {overrides!r}; expected two JSON objects, for DINOv2 and for SigLIP")
    unknown = sorted({name for each in overrides for name in each} - set(_VIT_SIZES))
    if unknown:
        raise ValueError(f"{path}: {field_name} has the keys {unknown}; allowed are {list(_VIT_SIZES)}")
    dinov2, siglip = (
        _replaced(base, each, field_name, path) for base, each in zip((DINOV2, SIGLIP), overrides, strict=True)
    )
    for vit in (dinov2, siglip):
        _check_heads(vit.embed_dim, vit.num_heads, f"{field_name}.num_heads", path)
    return dinov2, siglip


def _llama_dims(text: object, path: Path) -> LlamaDims:
    """Return the dimensions from `text_config`, a difference from Llama-2 7B: missing fields keep the values above."""
    if not isinstance(text, dict):
        raise ValueError(f"{path}: text_config is {text!r}; expected a JSON object")
    for name, expected in _LLAMA.items():
        if text.get(name, expected) != expected:
            raise ValueError(f"{path}: text_config.{name} is {text[name]!r}, expected {expected!r}, as Llama-2 has it")
    text = {**text, **_rope(text, path)}
    known = {item.name: text[item.name] for item in dataclasses.fields(LlamaDims) if item.name in text}
    dims = _replaced(LlamaDims(), known, "text_config", path)
    if dims.vocab_size != LlamaDims().vocab_size:
        raise ValueError(
            f"{path}: text_config.vocab_size is {dims.vocab_size}, expected 32064 (32000 tokens and 64 padding rows)"
        )
    _check_heads(dims.hidden_size, dims.num_attention_heads, "text_config.num_attention_heads", path)
    _check_heads(dims.num_attention_heads, dims.num_key_value_heads, "text_config.num_key_value_heads", path)
    return dims


def _rope(text: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the rotary settings: transformers 5 nests `rope_theta` in an object, earlier versions do not."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = text.get(name) or {}
        if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ValueError(
                f"{path}: text_config.{name} is {rope!r}; expected none or the rope_type 'default': positions of "
                "Llama-2 are not scaled"
            )
        if "rope_theta" in rope:
            return {"rope_theta": rope["rope_theta"]}
    return {}


def _replaced(base: Dims, changes: Mapping[str, Any], where: str, path: Path) -> Dims:
    """Return `base` with other sizes, each a positive number of the type that it replaces."""
    for name, value in changes.items():
        kind = type(getattr(base, name))
        if not is_positive(value, kind):
            raise ValueError(f"{path}: {where}.{name} is {value!r}; expected a positive {kind.__name__}")
    return dataclasses.replace(base, **changes)


def _check_heads(width: int, num_heads: int, where: str, path: Path) -> None:
    if width % num_heads:
        raise ValueError(f"{path}: {where} is {num_heads}, which does not divide {width}")
