"""What lies in a checkpoint directory of the public layout: shards, component files, statistics. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_rl.policies.openvla_oft.adapter_config import CONFIG_FILE as ADAPTER_CONFIG
from vla_rl.policies.openvla_oft.adapters import base_directory
from vla_rl.policies.openvla_oft.config import OFTConfig, ViTConfig
from vla_rl.policies.openvla_oft.json_files import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Of an export of ours:
VALUE_HEAD_FILE = "value_head.safetensors"
RECORD_FILE = "vla_rl.json"  # what no file of the public layout says


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Paths of one checkpoint; every one exists."""

    directory: Path  # of the shards and of what describes them
    shards: tuple[Path, ...]
    action_head: Path | None  # L1 regression head
    proprio_projector: Path | None
    value_head: Path | None = None
    adapter: Path | None = None  # folder of an adapter that is to be merged into the shards
    profile: str | None = None  # that an export recorded

    @property
    def home(self) -> Path:
        """The folder that was asked for: the adapter's, or that of the shards."""
        return self.adapter or self.directory


def find_files(directory: Path, *, adapter: Path | None = None) -> CheckpointFiles:
    """List a checkpoint.

    Args:
        directory: of the shards; or of an adapter without shards, whose base is then looked up.
        adapter: folder of an adapter for these shards. The components in it come before those of the base.

    Raises:
        ValueError: not a directory, weights missing, an ambiguous component, or a component this program cannot run.
    """
    if not directory.is_dir():
        raise ValueError(f"checkpoint {str(directory)!r} is not a directory; give a local checkpoint folder or 'tiny'")
    if adapter is None and _is_adapter_alone(directory):
        directory, adapter = base_directory(directory), directory
    places = [directory] if adapter is None else [adapter, directory]
    for place in places:
        for unsupported, meaning in (("vision_backbone", "FiLM"), ("noisy_action_projector", "diffusion")):
            if _component(place, unsupported) is not None:
                raise ValueError(f"{place}: holds a {unsupported} file ({meaning} variant), which is not supported")
    value_head = places[0] / VALUE_HEAD_FILE
    return CheckpointFiles(
        directory=directory,
        shards=_shards(directory),
        action_head=_first_component(places, "action_head"),
        proprio_projector=_first_component(places, "proprio_projector"),
        value_head=value_head if value_head.is_file() else None,
        adapter=adapter,
        profile=_recorded_profile(places),
    )


def _recorded_profile(places: list[Path]) -> str | None:
    for path in (place / RECORD_FILE for place in places):
        if path.is_file():
            profile = read_json(path).get("profile")
            if not isinstance(profile, str | None):
                raise ValueError(f"{path}: profile is {profile!r}; expected the name of one, or no such field")
            return profile
    return None


def _is_adapter_alone(directory: Path) -> bool:
    has_shards = any((directory / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))
    return (directory / ADAPTER_CONFIG).is_file() and not has_shards


def _first_component(places: list[Path], name: str) -> Path | None:
    return next((found for place in places if (found := _component(place, name)) is not None), None)


def _shards(directory: Path) -> tuple[Path, ...]:
    index = directory / INDEX_FILE
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{index}: expected 'weight_map', an object from tensor names to files")
        names = sorted(set(weight_map.values()))
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
