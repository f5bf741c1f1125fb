"""What lies in a checkpoint directory of the public layout: shards, component files, statistics. Reads no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vla_rl.policies.openvla_oft.config import OFTConfig, ViTConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Paths of one checkpoint; every one exists."""

    directory: Path
    shards: tuple[Path, ...]
    action_head: Path | None  # L1 regression head
    proprio_projector: Path | None


def find_files(directory: Path) -> CheckpointFiles:
    """List a checkpoint.

    Raises:
        ValueError: not a directory, weights missing, an ambiguous component, or a component this program cannot run.
    """
    if not directory.is_dir():
        raise ValueError(f"checkpoint {str(directory)!r} is not a directory; give a local checkpoint folder or 'tiny'")
    for unsupported, meaning in (("vision_backbone", "FiLM"), ("noisy_action_projector", "diffusion")):
        if _component(directory, unsupported) is not None:
            raise ValueError(f"{directory}: holds a {unsupported} file ({meaning} variant), which is not supported")
    return CheckpointFiles(
        directory=directory,
        shards=_shards(directory),
        action_head=_component(directory, "action_head"),
        proprio_projector=_component(directory, "proprio_projector"),
    )


def _shards(directory: Path) -> tuple[Path, ...]:
    index = directory / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index}: expected a JSON object with 'weight_map' (tensor name to file)") from error
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{index}: weight_map must name files in the same directory, found {names}")
    else:
        names = [SINGLE_FILE]
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"{directory}: missing {', '.join(missing)}; expected {SINGLE_FILE}, or {INDEX_FILE} and all its shards"
        )
    return tuple(directory / name for name in names)


def _component(directory: Path, name: str) -> Path | None:
    found = sorted(path for path in directory.glob(f"{name}*checkpoint*") if path.is_file())
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise ValueError(f"{directory}: several files for {name} ({listed}); keep exactly one")
    return found[0] if found else None


def unused_shapes(config: OFTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that are stored but never reach the output (43 in every public checkpoint).

    They are the last block and the final norm of both vision transformers, and SigLIP's pooling head.
    """
    return {
        f"vision_backbone.{prefix}.{name}": shape
        for prefix, vit in (("featurizer", config.dinov2), ("fused_featurizer", config.siglip))
        for name, shape in _unused_of_vit(vit).items()
    }


def _unused_of_vit(vit: ViTConfig) -> dict[str, tuple[int, ...]]:
    d, block = vit.embed_dim, f"blocks.{vit.depth - 1}"
    shapes = {**_norm("norm", d), **_norm(f"{block}.norm1", d), **_norm(f"{block}.norm2", d)}
    shapes |= {**_linear(f"{block}.attn.qkv", 3 * d, d), **_linear(f"{block}.attn.proj", d, d)}
    shapes |= _mlp(f"{block}.mlp", d, vit.mlp_dim)
    if vit.layer_scale:
        shapes |= {f"{block}.{name}.scale_factor": (d,) for name in ("ls1", "ls2")}
    if vit.attention_pool:
        shapes |= {"attn_pool.latent": (1, 1, d), **_norm("attn_pool.norm", d), **_linear("attn_pool.q", d, d)}
        shapes |= {**_linear("attn_pool.kv", 2 * d, d), **_linear("attn_pool.proj", d, d)}
        shapes |= _mlp("attn_pool.mlp", d, vit.mlp_dim)
    return shapes


def _linear(name: str, out_dim: int, in_dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_dim, in_dim), f"{name}.bias": (out_dim,)}


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _mlp(name: str, dim: int, hidden_dim: int) -> dict[str, tuple[int, ...]]:
    return {**_linear(f"{name}.fc1", hidden_dim, dim), **_linear(f"{name}.fc2", dim, hidden_dim)}
