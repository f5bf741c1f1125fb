"""Headers of weight files: names, shapes and dtypes of tensors, and a check that a file is complete.

Reading a header takes milliseconds and reading the weights minutes, so faults that a header shows are reported before
anything starts. The format: https://huggingface.co/docs/safetensors (eight bytes, a JSON object, then the data).
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_BYTES |= dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1)
FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes that may be cast to the network's


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One entry of a header."""

    dtype: str  # in the format's own notation, like BF16
    shape: tuple[int, ...]
    start: int  # offset of its data from the beginning of the file
    end: int  # offset of the end of its data


def refuse_pointer(path: Path) -> None:
    """Refuse the pointer file that git keeps in place of a large file until git-lfs fetches it.

    Raises:
        ValueError: it is one; the message has the command that fetches the file.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            folder = shlex.quote(str(path.resolve().parent))
            raise ValueError(
                f"{path}: a git-lfs pointer, not the file itself; fetch it with `cd {folder} && git lfs pull`"
            )


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read a safetensors file's tensor descriptions by name. Reads no data.

    Raises:
        ValueError: the file is a git-lfs pointer, truncated, or not a safetensors file.
    """
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, _LONGEST_HEADER):
            raise _incomplete(path, f"its header does not fit into its {size} bytes")
        text = file.read(length)
    try:
        content = json.loads(text)
        entries = {name: entry for name, entry in content.items() if name != "__metadata__"}
        tensors = {name: _entry(entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _incomplete(path, f"its header cannot be read: {error!r}") from error
    _check_extent(path, tensors, 8 + length, size)
    return tensors


def _entry(entry: Mapping[str, object], data: int) -> StoredTensor:
    dtype, shape, offsets = entry["dtype"], _counts(entry["shape"]), _counts(entry["data_offsets"])
    if not isinstance(dtype, str) or len(offsets) != 2:
        raise ValueError(f"unexpected entry {entry}")
    return StoredTensor(dtype, shape, data + offsets[0], data + offsets[1])


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"expected a list of whole numbers, found {values!r}")
    return tuple(values)


def _check_extent(path: Path, tensors: dict[str, StoredTensor], data: int, size: int) -> None:
    """Check that the tensors are contiguous and end where the file ends."""
    reached = data
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        expected = math.prod(tensor.shape) * _BYTES.get(tensor.dtype, 0)
        if tensor.start != reached or (tensor.dtype in _BYTES and tensor.end - tensor.start != expected):
            raise _incomplete(path, f"the data of {name} is not where its header says")
        reached = tensor.end
    if reached != size:
        raise _incomplete(path, f"its header promises {reached} bytes, the file has {size}")


def _incomplete(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path}: not a complete safetensors file ({reason}); copy it again")


def conversion(sources: Sequence[Path], target: Path) -> str:
    """Return the shell command that converts the tensors of pickled files into one safetensors file."""
    code = (
        "import torch; from safetensors.torch import save_file; "
        "save_file({name: tensor.clone().contiguous() "
        f"for file in {json.dumps([str(path) for path in sources])} "
        'for name, tensor in torch.load(file, map_location="cpu", weights_only=True).items()}, '
        f'{json.dumps(str(target))}, metadata={{"format": "pt"}})'
    )
    return f"python -c {shlex.quote(code)}"
