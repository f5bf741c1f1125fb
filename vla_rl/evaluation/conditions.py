"""Under which conditions an evaluation is made: they decide whether a folder's episodes may be gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

from vla_rl.evaluation.episodes import EPISODES_FILE
from vla_rl.reporting.files import atomic_write_json

CONDITIONS_FILE = "evaluation.json"

_USUAL = {"horizon": "the protocol's", "temperature": "greedy"}  # what None stands for
_OF_THE_POLICY = frozenset({"checkpoint", "fingerprint", "trained_on"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What two evaluations must have in common to be one evaluation, interrupted.

    Suites, tasks and the number of episodes are not part of it: they say how far an evaluation goes, and every episode
    knows its own.
    """

    checkpoint: str  # where it lies
    fingerprint: str  # of its contents: a checkpoint may move, and another one may take its place
    trained_on: str  # suite and initial states of the training, in words
    protocol: str
    horizon: int | None  # control steps, where the protocol's were overruled
    temperature: float | None  # None: greedy
    seeds: tuple[int, ...]
    init_states: str  # standard, spare or sampled
    assets: str  # of the simulator: which kind, and a digest of their files
    versions: str  # of what decides the physics and the pictures


def differences(first: Conditions, second: Conditions, *, of_policy: bool) -> list[str]:
    """What differs, as "name: value and value".

    Args:
        first: of one evaluation.
        second: of another.
        of_policy: whether another policy is a difference; where a checkpoint lies never is.
    """
    ours, theirs = asdict(first), asdict(second)
    ignored = {"checkpoint", "trained_on"} if of_policy else _OF_THE_POLICY
    return [
        f"{name}: {_in_words(name, ours[name])} and {_in_words(name, theirs[name])}"
        for name in ours
        if name not in ignored and ours[name] != theirs[name]
    ]


def digest_of_files(folder: Path, parts: Sequence[str]) -> str:
    """Twelve hexadecimal digits that tell the contents of two folders apart, wherever the folders lie.

    Args:
        folder: of files.
        parts: its sub-folders that count; what else lies there, like a downloader's notes, does not.
    """
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def read_conditions(folder: Path) -> Conditions | None:
    """The conditions of the evaluation in a folder; None if there is none.

    Raises:
        ValueError: the file is broken.
    """
    path = folder / CONDITIONS_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Conditions(**{**values, "seeds": tuple(values["seeds"])})
    except (ValueError, TypeError, KeyError) as error:
        names = ", ".join(field.name for field in fields(Conditions))
        raise ValueError(f"{path}: expected an object with {names}, found something else; remove the folder") from error


def claim_folder(conditions: Conditions, *, out: Path | None, default: Path) -> Path:
    """The folder of an evaluation, new or to be gone on with; its conditions stand in it afterwards.

    Args:
        conditions: of this evaluation.
        out: the folder that was asked for.
        default: where to write if none was; numbered on while another evaluation stands there.

    Raises:
        ValueError: another evaluation stands in `out`.
    """
    if out is None:
        folder = next(folder for folder in _numbered(default) if not _obstacles(folder, conditions))
    elif obstacles := _obstacles(out, conditions):
        raise ValueError(
            f"--out: {out} holds another evaluation, and two are never mixed (then and now: {'; '.join(obstacles)}). "
            "Choose another folder"
        )
    else:
        folder = out
    atomic_write_json(folder / CONDITIONS_FILE, asdict(conditions))
    return folder


def _numbered(folder: Path) -> Iterator[Path]:
    """`name`, `name_2`, `name_3`, ..."""
    yield folder
    yield from (folder.with_name(f"{folder.name}_{number}") for number in count(2))


def _obstacles(folder: Path, conditions: Conditions) -> list[str]:
    """Why an evaluation may not write here."""
    there = read_conditions(folder)
    if there is not None:
        return differences(there, conditions, of_policy=True)
    if (folder / EPISODES_FILE).exists():
        return [f"{EPISODES_FILE} without {CONDITIONS_FILE}"]
    return []


def _in_words(name: str, value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return _USUAL[name] if value is None else str(value)
