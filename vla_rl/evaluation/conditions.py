"""Conditions of an evaluation, which determine whether a folder's episodes may be continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

from vla_rl.errors import UserError, preflight
from vla_rl.evaluation.episode_log import EPISODES_FILE, EpisodeKey, in_words, read_episodes
from vla_rl.files import atomic_write_json
from vla_rl.reporting.manifest import MANIFEST_FILE
from vla_rl.reporting.run_folder import RECIPE_FILE
from vla_rl.run.folder_lock import check_name, claim_folder

CONDITIONS_FILE = "evaluation.json"

_USUAL = {"horizon": "the protocol's", "temperature": "greedy"}  # meaning of None
_OF_THE_POLICY = frozenset({"checkpoint", "fingerprint", "trained_on"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Conditions that an interrupted evaluation and its continuation must share.

    Suites, tasks and the number of episodes are excluded: they say how far an evaluation goes, perhaps further next
    time, and every episode records its own.
    """

    checkpoint: str  # location, for people
    fingerprint: str  # digest of its contents: a checkpoint may move, and another one may take its place
    trained_on: str  # suite and initial states of the training, in words
    protocol: str
    horizon: int | None  # control steps, if they replace the protocol's
    temperature: float | None  # None: greedy
    seeds: tuple[int, ...]
    init_states: str  # standard, spare, sampled or widened
    assets: str  # kind of the simulator's assets, and a digest of their files
    versions: str  # versions of the packages that determine physics and images


def differences(first: Conditions, second: Conditions, *, of_policy: bool) -> list[str]:
    """Return the differences, as "name: value and value".

    Args:
        first: conditions of one evaluation.
        second: conditions of another.
        of_policy: count another policy as a difference; a checkpoint's location never counts.
    """
    ours, theirs = asdict(first), asdict(second)
    ignored = {"checkpoint", "trained_on"} if of_policy else _OF_THE_POLICY
    return [
        f"{name}: {_in_words(name, ours[name])} and {_in_words(name, theirs[name])}"
        for name in ours
        if name not in ignored and ours[name] != theirs[name]
    ]


def digest_of_files(folder: Path, parts: Sequence[str]) -> str:
    """Return twelve hexadecimal digits that identify a folder's contents, independent of its location.

    Args:
        folder: folder with files.
        parts: sub-folders that count; anything else, like a downloader's state, is ignored.
    """
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def read_conditions(folder: Path) -> Conditions | None:
    """Return the conditions of the evaluation in a folder; None if there is none.

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


@contextmanager
def evaluation_folder(
    conditions: Conditions, wanted: Set[EpisodeKey], *, out: Path | None, default: Path
) -> Iterator[Path]:
    """Find the folder of an evaluation, new or continued; lock it against other writers and write its conditions.

    Results summarise all episodes of a folder, so one with episodes other than the wanted ones belongs to another
    evaluation.

    Args:
        conditions: conditions of this evaluation.
        wanted: keys of its episodes.
        out: folder that the user chose.
        default: folder if the user chose none; numbered if it holds another evaluation.

    Raises:
        UserError: the folder cannot be used (its path is no text, it cannot be created, another process is writing
            there), or it holds something else.
    """
    with preflight():
        free = (folder for folder in _numbered(default) if _obstacle(folder, conditions, wanted) is None)
        folder = next(free) if out is None else out
        check_name(folder, option="--out")
    with claim_folder(folder, option="--out"):  # before the first file is written, which might otherwise be another's
        with preflight():
            obstacle = _obstacle(folder, conditions, wanted)
        if obstacle is not None:
            raise UserError(f"--out: {folder} {obstacle}. Choose another folder")
        atomic_write_json(folder / CONDITIONS_FILE, asdict(conditions))
        yield folder


def _numbered(folder: Path) -> Iterator[Path]:
    """Yield `name`, `name_2`, `name_3`, ..."""
    yield folder
    yield from (folder.with_name(f"{folder.name}_{number}") for number in count(2))


def _obstacle(folder: Path, conditions: Conditions, wanted: Set[EpisodeKey]) -> str | None:
    """Return why an evaluation may not write here; None if it may."""
    if (folder / RECIPE_FILE).exists():
        return f"is the folder of a run ({RECIPE_FILE}), whose manifest would be lost"
    there = read_conditions(folder)
    if there is None:
        foreign = [name for name in (MANIFEST_FILE, EPISODES_FILE) if (folder / name).exists()]
        return f"holds {foreign[0]} of something else: there is no {CONDITIONS_FILE}" if foreign else None
    if changes := differences(there, conditions, of_policy=True):
        return f"holds another evaluation, and two are never mixed (then and now: {'; '.join(changes)})"
    if more := _others(folder / EPISODES_FILE, wanted):
        return (
            f"holds {len(more)} episodes besides the asked ones, {in_words(more[0])} for one, and results summarise a "
            "whole folder. Ask for those too (--suite, --tasks, --episodes-per-task)"
        )
    return None


def _others(log: Path, wanted: Set[EpisodeKey]) -> list[EpisodeKey]:
    played = {episode.key for episode in read_episodes(log)} if log.exists() else set()
    return sorted(played - wanted)


def _in_words(name: str, value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return _USUAL[name] if value is None else str(value)
