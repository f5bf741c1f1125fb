"""Files of a checkpoint directory in the public layout: shards, component files, statistics. Reads no weights.

Three kinds of folder are supported: shards with their components beside them; a LoRA adapter alone, which names its
base; and the run folder of an OpenVLA-OFT fine-tuning whose adapter was not merged. The latter holds `lora_adapter/`,
and beside it the files trained with it: statistics, `proprio_projector--*` and `action_head--*`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_rl.policies.openvla_oft.adapter_config import BASE_FIELD
from vla_rl.policies.openvla_oft.adapter_config import CONFIG_FILE as ADAPTER_CONFIG
from vla_rl.policies.openvla_oft.adapters import WEIGHTS_FILE as ADAPTER_WEIGHTS
from vla_rl.policies.openvla_oft.adapters import base_directory
from vla_rl.policies.openvla_oft.config import OFTConfig, ViTConfig
from vla_rl.policies.openvla_oft.dataset_statistics import STATISTICS_FILE
from vla_rl.policies.openvla_oft.headers import conversion
from vla_rl.policies.openvla_oft.json_files import is_positive, read_json
from vla_rl.policies.openvla_oft.shards import find_shards, has_shards

ADAPTER_FOLDER = "lora_adapter"  # name given by OpenVLA-OFT's fine-tuning
ADAPTER_PICKLED = "adapter_model.bin"
COMPONENTS = ("action_head", "proprio_projector")
_UNSUPPORTED = {"vision_backbone": "FiLM", "noisy_action_projector": "diffusion"}
_PICKLES = (".pt", ".pth", ".bin")
_STEP = re.compile(r"--(.+)_checkpoint")
# Files of this program's exports:
VALUE_HEAD_FILE = "value_head.safetensors"
RECORD_FILE = "vla_rl.json"  # facts that the public layout has no file for


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Paths of one checkpoint; every one exists."""

    directory: Path  # folder of the shards and their description
    shards: tuple[Path, ...]
    action_head: Path | None  # L1 regression head
    proprio_projector: Path | None
    value_head: Path | None = None
    adapter: Path | None = None  # folder of an adapter to merge into the shards
    run: Path | None = None  # folder of the fine-tuning that trained the adapter, if the adapter's folder is below it
    profile: str | None = None  # recorded by an export
    num_images: int | None = None  # cameras, recorded where they are not those of the profile
    statistics: str | None = None  # key of the data set whose statistics scale the actions, recorded by an export

    @property
    def home(self) -> Path:
        """Return the folder that stands for the checkpoint: of the run, of the adapter, or of the shards."""
        return self.run or self.adapter or self.directory

    @property
    def folders(self) -> tuple[Path, ...]:
        """Return every folder that files are read from, each once, the most specific first."""
        found = (self.run, self.adapter, self.directory)
        return tuple(dict.fromkeys(folder for folder in found if folder is not None))

    @property
    def weights(self) -> tuple[Path, ...]:
        """Return the files of all weights but the critic's, in a fixed order."""
        adapter = None if self.adapter is None else self.adapter / ADAPTER_WEIGHTS
        parts = (self.action_head, self.proprio_projector, adapter)
        return (*self.shards, *(path for path in parts if path is not None))


def find_files(directory: Path, *, adapter: Path | None = None) -> CheckpointFiles:
    """List a checkpoint.

    Args:
        directory: folder of the shards; of an adapter without shards, whose base is then looked up; or of the run that
            trained such an adapter.
        adapter: folder of an adapter for these shards, or of the run that trained it. Its components take precedence
            over the base's.

    Raises:
        ValueError: not a directory, missing weights, an ambiguity, or a component this program cannot run.
    """
    require_directory(directory)
    run = None
    if adapter is not None:
        adapter, run = _adapter_and_run(adapter)
        _refuse_merged(adapter, only_into=directory)
    elif _is_adapter_alone(directory):
        adapter, run = _adapter_and_run(directory)
        _refuse_merged(adapter)
        directory = base_directory(adapter)
    files = CheckpointFiles(directory, find_shards(directory), None, None, adapter=adapter, run=run)
    components = _components_of_run(files) if run is not None else _components(files.folders)
    # Only the run's own files say how it was trained: the base's record is of another training.
    recorded_in = files.folders if run is None else (run,)
    value_head = files.home / VALUE_HEAD_FILE
    return CheckpointFiles(
        directory=directory,
        shards=files.shards,
        action_head=components["action_head"],
        proprio_projector=components["proprio_projector"],
        value_head=value_head if value_head.is_file() else None,
        adapter=adapter,
        run=run,
        profile=_recorded(recorded_in, "profile"),
        statistics=_recorded(recorded_in, "statistics"),
        num_images=_recorded_cameras(recorded_in),
    )


def require_directory(directory: Path) -> None:
    """Check that there is a folder of that name.

    Raises:
        ValueError: there is none.
    """
    if not directory.is_dir():
        raise ValueError(
            f"checkpoint {str(directory)!r} is not a directory; give a local checkpoint folder, the name of one on the "
            "hub, or 'tiny'"
        )


def is_checkpoint(directory: Path) -> bool:
    """Return whether `find_files` would accept a directory as a checkpoint, intact or damaged."""
    return (directory / "config.json").is_file() or has_shards(directory) or _is_adapter_alone(directory)


def record_of(directory: Path) -> Path | None:
    """Return the record that this program's export left in a folder."""
    path = directory / RECORD_FILE
    return path if path.is_file() else None


def _recorded(folders: Sequence[Path], field: str) -> str | None:
    """Return a name from the first record that has one."""
    for path in (path for folder in folders if (path := record_of(folder)) is not None):
        name = read_json(path).get(field)
        if not isinstance(name, str | None):
            raise ValueError(f"{path}: {field} is {name!r}; expected the name of one, or no such field")
        return name
    return None


def _recorded_cameras(folders: Sequence[Path]) -> int | None:
    """Return the number of cameras in the first record, if it has one."""
    for path in (path for folder in folders if (path := record_of(folder)) is not None):
        number = read_json(path).get("num_images")
        if number is not None and not is_positive(number, int):
            raise ValueError(f"{path}: num_images is {number!r}; expected a number of cameras, or no such field")
        return number
    return None


def _is_adapter_alone(directory: Path) -> bool:
    is_adapter = any((folder / ADAPTER_CONFIG).is_file() for folder in (directory, directory / ADAPTER_FOLDER))
    return is_adapter and not has_shards(directory)


def _adapter_and_run(folder: Path) -> tuple[Path, Path | None]:
    """Return the adapter that a folder stands for, and the folder of the run that trained it, if different.

    Raises:
        ValueError: the adapter's weights are missing or present twice, or both folders hold files that belong in one.
    """
    adapter = folder if (folder / ADAPTER_CONFIG).is_file() else folder / ADAPTER_FOLDER
    _check_adapter_weights(adapter)
    run = adapter.resolve().parent if adapter == folder else folder
    if adapter != folder or adapter.resolve().name == ADAPTER_FOLDER:
        twice = [name for name in _trained_with(adapter) if name in _trained_with(run)]
        if twice:
            raise ValueError(
                f"{adapter} and {run} both hold {', '.join(twice)}, and nothing says which belongs to the adapter; "
                f"keep those of one of the two folders"
            )
    is_of_run = not _trained_with(adapter) and bool(_trained_with(run)) and not has_shards(run)
    return adapter, run if is_of_run else None


def _trained_with(folder: Path) -> list[str]:
    """Return the kinds of files in a folder that were trained together with an adapter: components, statistics."""
    kinds = [name for name in (*COMPONENTS, *_UNSUPPORTED) if _component_files(folder, name)]
    return kinds + [name for name in (STATISTICS_FILE, RECORD_FILE) if (folder / name).is_file()]


def _check_adapter_weights(adapter: Path) -> None:
    weights, pickled = adapter / ADAPTER_WEIGHTS, adapter / ADAPTER_PICKLED
    if weights.is_file() and pickled.is_file():
        raise ValueError(
            f"{adapter}: {ADAPTER_WEIGHTS} and {ADAPTER_PICKLED} are both there, and nothing says which is meant; "
            f"delete the wrong one (peft would take {ADAPTER_WEIGHTS}: `rm {shlex.quote(str(pickled))}`)"
        )
    if not weights.is_file() and pickled.is_file():
        raise ValueError(
            f"{adapter}: {ADAPTER_WEIGHTS} is missing; {ADAPTER_PICKLED} is in torch's own format, which can execute "
            f"code and is not read. Convert it: {conversion([pickled], weights)}"
        )


def _refuse_merged(adapter: Path, *, only_into: Path | None = None) -> None:
    """Refuse an adapter that fine-tuning of OpenVLA-OFT has already merged into the shards above it.

    Args:
        adapter: adapter to merge into its base, or into `only_into`.
        only_into: the requested shards; others beside the adapter are then ignored.

    Raises:
        ValueError: it lies below shards, does not name them as its base, and would be merged nevertheless.
    """
    beside = adapter.resolve().parent
    if adapter.resolve().name != ADAPTER_FOLDER or not has_shards(beside):
        return
    named = read_json(adapter / ADAPTER_CONFIG).get(BASE_FIELD) or ""
    adapts_them = bool(named) and beside in {Path(str(named)).resolve(), (adapter / str(named)).resolve()}
    if not adapts_them and (only_into is None or only_into.resolve() == beside):
        raise ValueError(
            f"{adapter}: fine-tuning has merged this adapter into the shards beside it already; load {beside} itself"
        )


def _components_of_run(files: CheckpointFiles) -> dict[str, Path | None]:
    """Return only the run's own components: its files say what it trained with.

    Raises:
        ValueError: the base has one that the run lacks, so it is unknown whether the run used it.
    """
    assert files.run is not None
    own, base = _components([files.run]), _components([files.directory])
    for name, path in base.items():
        if path is not None and own[name] is None:
            raise ValueError(
                f"{files.run}: its base has {path}, and there is no {name} file beside {ADAPTER_FOLDER}, so nothing "
                f"says whether this run used one. If it used that of its base: "
                f"`cp {shlex.quote(str(path))} {shlex.quote(str(files.run))}`"
            )
    return own


def _components(folders: Sequence[Path]) -> dict[str, Path | None]:
    """Return component files by kind, each from the first folder that has one."""
    for folder in folders:
        for name, meaning in _UNSUPPORTED.items():
            if _component_files(folder, name):
                raise ValueError(f"{folder}: holds a {name} file ({meaning} variant), which is not supported")
    found = [_components_in(folder) for folder in folders]
    return {name: next((there[name] for there in found if name in there), None) for name in COMPONENTS}


def _components_in(folder: Path) -> dict[str, Path]:
    found = {name: path for name in COMPONENTS if (path := _component(folder, name)) is not None}
    steps = {match[1] for path in found.values() if (match := _STEP.search(path.name)) is not None}
    if len(steps) > 1:
        raise ValueError(
            f"{folder}: {' and '.join(path.name for path in found.values())} are of different steps, so of different "
            "checkpoints; replace one by that of the other's step"
        )
    return found


def _component(directory: Path, name: str) -> Path | None:
    found = _component_files(directory, name)
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise ValueError(f"{directory}: several files for {name} ({listed}); keep exactly one")
    if found:
        return found[0]
    misnamed = sorted(path for path in directory.glob(f"{name}*") if path.suffix in _PICKLES and path.is_file())
    if misnamed:
        renamed = directory / f"{name}--0_checkpoint.pt"
        raise ValueError(
            f"{misnamed[0]}: OpenVLA-OFT has 'checkpoint' in the name of its {name} file, and finds it by that; if "
            f"this is one: `mv {shlex.quote(str(misnamed[0]))} {shlex.quote(str(renamed))}`"
        )
    return None


def _component_files(directory: Path, name: str) -> list[Path]:
    return sorted(path for path in directory.glob(f"{name}*checkpoint*") if path.is_file())


def unused_shapes(config: OFTConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of stored tensors that never reach the output (43 in every public checkpoint).

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
