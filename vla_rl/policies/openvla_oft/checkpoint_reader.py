"""Reader of a local OpenVLA-OFT checkpoint's weights: shard by shard, into a network built on the meta device."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_rl.policies.openvla_oft.adapters import WEIGHTS_FILE as ADAPTER_WEIGHTS
from vla_rl.policies.openvla_oft.adapters import Adapter, read_adapter
from vla_rl.policies.openvla_oft.checkpoint_files import COMPONENTS, CheckpointFiles, unused_shapes
from vla_rl.policies.openvla_oft.config import OFTConfig
from vla_rl.policies.openvla_oft.headers import FLOATS, StoredTensor, read_header, refuse_pointer
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.openvla_oft.profiles import Profile
from vla_rl.policies.openvla_oft.shards import INDEX_FILE, SINGLE_FILE, plain_name, read_index, stored_tensors
from vla_rl.policies.parameters import META, cast_parameters, move_buffers, set_parameter

Network = TypeVar("Network", bound=OFTNetwork)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MAPPED_BYTES = 64 << 20  # bytes read from a shard before it is mapped again
_SHOWN_NAMES = 6  # names shown of a long list in an error message


def empty_model(
    kind: type[Network], config: OFTConfig, profile: Profile, *, proprio: bool, l1_head: bool, dtype: torch.dtype
) -> Network:
    """Build the frozen network with its parameters on the meta device, as an instance of `kind`."""
    with META:
        model = kind(config, profile, proprio=proprio, l1_head=l1_head)
    cast_parameters(model, dtype)
    return model.requires_grad_(False)


def check_stored(model: OFTNetwork, files: CheckpointFiles) -> None:
    """Compare the names, shapes, dtypes and sizes in the files with those `model` needs. Reads no weights.

    Raises:
        ValueError: a file of weights is incomplete, or a tensor is missing, unknown or misshapen; all are named.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    known = {**unused_shapes(model.config), **expected}
    stored = stored_tensors(files.shards)
    faults = _index_faults(files.directory, stored)
    components = {
        f"{component}.{name}": shape
        for component in COMPONENTS
        if getattr(model, component) is not None
        for name, shape in _component_shapes(_component_file(files, component)).items()
    }
    found = {name: entry.shape for name, (_, entry) in stored.items()} | components
    faults += [f"holds the tensor {name!r}, which OpenVLA-OFT does not have" for name in found if name not in known]
    faults += [
        f"{name} has shape {shape}, config.json implies {known[name]}"
        for name, shape in found.items()
        if shape != known.get(name, shape)
    ]
    faults += [
        f"{name} is stored as {entry.dtype}, which is not a number format of trained weights ({', '.join(FLOATS)}); "
        "quantised checkpoints are not read"
        for name, (_, entry) in stored.items()
        if name in known and entry.dtype not in FLOATS
    ]
    missing = [name for name in expected if name not in found]
    if missing:
        faults.append(f"{len(missing)} tensors are missing: {_shorten(missing)}")
    if faults:
        raise ValueError(f"{files.directory}: {_shorten(faults, separator='; ')}")
    if files.value_head is not None:
        read_header(files.value_head)
    if files.adapter is not None and (files.adapter / ADAPTER_WEIGHTS).is_file():
        read_header(files.adapter / ADAPTER_WEIGHTS)
    _merged(files, known)


def _index_faults(directory: Path, stored: Mapping[str, tuple[Path, StoredTensor]]) -> list[str]:
    """Return the contradictions between an index and the shards that it names."""
    paths = {path for path, _ in stored.values()}
    if not (directory / INDEX_FILE).is_file() or paths == {directory / SINGLE_FILE}:
        return []
    indexed = {name: file for key, file in read_index(directory).items() if (name := plain_name(key)) is not None}
    faults = [
        f"{INDEX_FILE} says that {name} is in {file}, where it is not"
        for name, file in indexed.items()
        if name not in stored or stored[name][0].name != file
    ]
    return faults + [
        f"{path.name} holds {name}, of which {INDEX_FILE} does not know"
        for name, (path, _) in stored.items()
        if name not in indexed
    ]


def fill_model(model: OFTNetwork, files: CheckpointFiles, *, device: torch.device) -> None:
    """Fill every parameter of `model` with its stored tensor, cast to the parameter's dtype.

    Raises:
        ValueError: as `check_stored`, or a file cannot be read.
    """
    check_stored(model, files)
    parameters = dict(model.named_parameters())
    adapter = _merged(files, {**unused_shapes(model.config), **parameters})
    for name, stored in _stored_tensors(files, [name for name in COMPONENTS if getattr(model, name) is not None]):
        if name in parameters:
            tensor = stored if adapter is None else adapter.apply(name, stored)
            set_parameter(model, name, tensor.to(device=device, dtype=parameters[name].dtype))
    move_buffers(model, device)


def unused_tensors(files: CheckpointFiles, config: OFTConfig) -> dict[str, Tensor]:
    """Return the stored tensors that the network does not hold, as far as a checkpoint has them, for an export."""
    shapes = unused_shapes(config)
    adapter = None if files.adapter is None else read_adapter(files.adapter)
    found = {name: tensor for shard in files.shards for name, tensor in _read_shard(shard, only=shapes)}
    return found if adapter is None else {name: adapter.apply(name, tensor) for name, tensor in found.items()}


def _merged(files: CheckpointFiles, known: Mapping[str, object]) -> Adapter | None:
    """Return the adapter to merge, if there is one. ValueError if it adapts a tensor that is not in `known`."""
    if files.adapter is None:
        return None
    adapter = read_adapter(files.adapter)
    unmatched = sorted(adapter.names - set(known))
    if unmatched:
        raise ValueError(f"{adapter.folder}: adapts what is not there: {_shorten(unmatched)}")
    return adapter


def _stored_tensors(files: CheckpointFiles, components: list[str]) -> Iterator[tuple[str, Tensor]]:
    for shard in files.shards:
        yield from _read_shard(shard, only=None)
    for component in components:
        state = _read_component(_component_file(files, component))
        yield from ((f"{component}.{name}", tensor) for name, tensor in state.items())


def _component_file(files: CheckpointFiles, component: str) -> Path:
    path: Path | None = getattr(files, component)
    assert path is not None, "a network has a component where its source has the file"
    return path


def _read_shard(path: Path, *, only: Mapping[str, object] | None) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors of a shard, all of them or the names in `only`. They are views of the mapped file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as shard:
            names = [
                (name, plain)
                for name in shard.keys()  # noqa: SIM118 - not a mapping
                if (plain := plain_name(name)) is not None and (only is None or plain in only)
            ]
        while names:
            # Pages that were read count as this process's memory while the mapping is open. Mapping again from time to
            # time releases those that were cast into separate tensors.
            read = 0
            with safe_open(path, framework="pt", device="cpu") as shard:
                while names and read < _MAPPED_BYTES:
                    stored_name, name = names.pop(0)
                    tensor = shard.get_tensor(stored_name)
                    read += tensor.nbytes
                    yield name, tensor
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); copy it again") from error


def _component_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes in a component file without reading or allocating its data."""
    return {name: tuple(tensor.shape) for name, tensor in _read_component(path, device="meta").items()}


def _read_component(path: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """Read a plain state dict without executing pickled code; a leading `module.` (DDP) is dropped."""
    refuse_pointer(path)
    if not zipfile.is_zipfile(path):  # torch would treat it as a pickle and fail obscurely
        raise ValueError(f"{path}: cannot be read as a plain state dict (no file of torch.save); copy it again")
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=device == "meta")
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read as a plain state dict ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a plain state dict of tensors")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _shorten(names: Sequence[str], *, separator: str = ", ") -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return separator.join(names[:_SHOWN_NAMES]) + more
