"""Files that hold the weights of a checkpoint directory, and refusals where there are two sets of them.

transformers loads `model.safetensors` if there is one, otherwise an index with its shards. A folder that was written to
twice may have both, an old set and a new one; this module never guesses which is meant.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from vla_rl.policies.openvla_oft.headers import StoredTensor, conversion, read_header
from vla_rl.policies.openvla_oft.json_files import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Prefixes that wrappers add to every name: DDP, torch.compile, peft. They are removed.
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
_ADAPTED = (".lora_A.", ".lora_B.", ".lora_magnitude_vector", ".base_layer.", ".modules_to_save.")
_NOT_NEEDED = ".rotary_emb.inv_freq"  # stored by older versions of transformers; it follows from the config
_NUMBERED = "model-*-of-*.safetensors"
_PICKLED = "pytorch_model*.bin"
_ASIDE = "unused"  # folder for files that do not belong
_BLOCK = 16 << 20  # bytes compared at a time


def has_shards(directory: Path) -> bool:
    """Return whether weights of a whole network lie in a directory, complete or not."""
    return any((directory / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)) or bool(_numbered(directory))


def find_shards(directory: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights.

    Raises:
        ValueError: some are missing, or two sets of them hold different weights.
    """
    single, numbered = directory / SINGLE_FILE, _numbered(directory)
    if (directory / INDEX_FILE).is_file():
        indexed = sorted({directory / name for name in read_index(directory).values()})
        absent = [path.name for path in indexed if not path.is_file()]
        if single.is_file() and (indexed == [single] or (len(absent) == len(indexed) and not numbered)):
            return (single,)  # the index describes this file, or is a leftover
        if single.is_file():
            return _if_equal(single, sorted({*indexed, *numbered}))
        if absent:
            raise ValueError(
                f"{directory}: missing {', '.join(absent)}; expected {SINGLE_FILE}, or {INDEX_FILE} and all its shards"
            )
        return _if_all_are_indexed(indexed, numbered)
    if single.is_file():
        return _if_equal(single, numbered) if numbered else (single,)
    raise ValueError(f"{directory}: missing {_what_is_missing(directory, numbered)}")


def read_index(directory: Path) -> dict[str, str]:
    """Read the index: file name by tensor name.

    Raises:
        ValueError: the index holds something else, or names files in another folder.
    """
    path = directory / INDEX_FILE
    weight_map = read_json(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise ValueError(f"{path}: expected 'weight_map', an object from tensor names to files")
    names = sorted(set(weight_map.values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{path}: weight_map must name files in the same directory, found {names}")
    return weight_map


def plain_name(stored: str) -> str | None:
    """Return OpenVLA-OFT's name of a stored tensor; None if it follows from the config."""
    name = stored
    while (wrapper := next((each for each in _WRAPPERS if name.startswith(each)), None)) is not None:
        name = name.removeprefix(wrapper)
    return None if name.endswith(_NOT_NEEDED) else name


def stored_tensors(shards: Sequence[Path]) -> dict[str, tuple[Path, StoredTensor]]:
    """Return the tensors of a checkpoint by plain name, each with the file that holds it. Reads only headers.

    Raises:
        ValueError: a file is incomplete, a tensor is stored twice, or the shards hold unmerged adapters.
    """
    found: dict[str, tuple[Path, StoredTensor]] = {}
    for path in shards:
        for stored, tensor in read_header(path).items():
            if any(part in stored for part in _ADAPTED):
                raise ValueError(
                    f"{path}: holds {stored!r}: it was saved around adapters that are not merged. Merge them in the "
                    "program that made it (peft: `model = model.merge_and_unload()`) and save it again"
                )
            name = plain_name(stored)
            if name in found:
                raise ValueError(f"{path}: holds {stored!r}, and {found[name][0]} holds that tensor too; keep one")
            if name is not None:
                found[name] = (path, tensor)
    return found


def _numbered(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob(_NUMBERED) if path.is_file())


def _what_is_missing(directory: Path, numbered: Sequence[Path]) -> str:
    if numbered:
        return f"{INDEX_FILE}, which says what is in {_names(numbered)}; copy it too"
    pickled = sorted(directory.glob(_PICKLED))
    if pickled:
        return (
            f"{SINGLE_FILE}; {_names(pickled)} is in torch's own format, which can execute code and is not read. "
            f"Convert it: {conversion(pickled, directory / SINGLE_FILE)}"
        )
    return f"{SINGLE_FILE}; expected {SINGLE_FILE}, or {INDEX_FILE} and all its shards"


def _if_all_are_indexed(indexed: Sequence[Path], numbered: Sequence[Path]) -> tuple[Path, ...]:
    others = [path for path in numbered if path not in indexed]
    if others:
        directory = indexed[0].parent
        raise ValueError(
            f"{directory}: {_names(others)} is not in {INDEX_FILE}, which names {_names(indexed)}: two sets of shards "
            f"lie there, and nothing says which is meant. To take those of the index: {_move_aside(others)}"
        )
    return tuple(indexed)


def _if_equal(single: Path, others: Sequence[Path]) -> tuple[Path, ...]:
    """Return the single file if the others hold exactly the same."""
    missing = [path for path in others if not path.is_file()]
    difference = f"{missing[0].name} is missing" if missing else _difference(_signature(single, *others))
    if not difference:
        return (single,)
    index = single.with_name(INDEX_FILE)
    there = [path for path in (index, *others) if path.is_file()]
    ways = [f"To take {SINGLE_FILE}: {_move_aside(there)}"]
    if index.is_file() and not missing and {path.name for path in others} == {*read_index(single.parent).values()}:
        ways.append(f"To take the others: {_move_aside([single])}")
    raise ValueError(
        f"{single.parent}: {SINGLE_FILE} and {_names(there)} are two sets of weights and not the same ({difference}); "
        f"nothing says which is meant. {'. '.join(ways)}"
    )


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _move_aside(paths: Sequence[Path]) -> str:
    """Return the shell command that moves files out of the way and deletes nothing."""
    folder = shlex.quote(str(paths[0].parent / _ASIDE))
    return f"`mkdir -p {folder} && mv {' '.join(shlex.quote(str(path)) for path in paths)} {folder}`"


Signature = tuple[tuple[Path, int, int], ...]


def _signature(*paths: Path) -> Signature:
    """Return files with size and modification time: while these are unchanged, so is the content."""
    return tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


@lru_cache(maxsize=8)
def _difference(files: Signature) -> str:
    """Describe how the other files differ from the first; empty if all are equal. Reads them once."""
    single = files[0][0]
    first = read_header(single)
    others = {name: (path, entry) for path, _, _ in files[1:] for name, entry in read_header(path).items()}
    for name in sorted(first.keys() ^ others.keys()):
        return f"only {single.name if name in first else others[name][0].name} has {name}"
    for name, entry in sorted(first.items()):
        path, other = others[name]
        if (entry.dtype, entry.shape) != (other.dtype, other.shape) or not _same_bytes(single, entry, path, other):
            return f"{name} differs"
    return ""


def _same_bytes(first: Path, entry: StoredTensor, second: Path, other: StoredTensor) -> bool:
    with first.open("rb") as one, second.open("rb") as two:
        one.seek(entry.start)
        two.seek(other.start)
        left = entry.end - entry.start
        while left > 0:
            size = min(left, _BLOCK)
            if one.read(size) != two.read(size):
                return False
            left -= size
    return True
