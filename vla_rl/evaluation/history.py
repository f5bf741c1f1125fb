"""History of a policy: the run that made it, in numbers and settings, and what that run began from.

Exports and policies of supervised runs carry it in their record, so that a model card can be written from the folder
alone. It holds nothing about the machines: paths are reduced to their last part, trackers and addresses are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from vla_rl.evaluation.policy_source import PolicySource
from vla_rl.files import atomic_write_json, read_json_object
from vla_rl.policies.openvla_oft.checkpoint_files import RECORD_FILE
from vla_rl.policies.openvla_oft.hub import is_hub_id
from vla_rl.policies.openvla_oft.json_files import read_json
from vla_rl.reporting.manifest import MANIFEST_FILE, changes_in_words, directory_of, earlier_starts

_FIELD, _FINGERPRINT = "history", "exported_from"  # fields of a record
_STATE = "state.json"  # of a checkpoint
_OF_THE_MACHINE = ("logging", "runtime", "checkpoint")  # sections of a recipe that change no policy
_ADDRESSES = "remote"  # field of rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One run, up to the checkpoint that a policy is from."""

    stage: Literal["train", "sft"]  # verb of the command line
    run: str  # the recipe's name
    recipe: dict[str, Any]  # without sections, addresses and paths of the machines
    optimizer_steps: int
    env_steps: int | None  # control steps simulated, all ranks together; None: none are (sft)
    episodes: int | None
    started: str | None  # of the run's latest start, in ISO 8601
    versions: dict[str, str]  # of the packages of that start
    commit: str | None  # of this program
    has_local_changes: bool  # its files differed from the commit
    deviations: tuple[str, ...]  # from the benchmark's protocol in the training, in sentences
    base: (
        str | None
    )  # checkpoint that the training began from: a name on the hub, or a folder's name; or random weights
    base_history: History | None  # of that checkpoint, if its folder has one
    changes: tuple[str, ...] = ()  # what a resumed start changed, in sentences; recipe, versions and commit: the last's


def history_of(source: PolicySource) -> History | None:
    """Return the history of a policy that a run made; None if nothing tells it.

    Raises:
        ValueError: a record is broken.
    """
    if source.checkpoint is not None:
        return history_of_run(source.checkpoint.parents[1], source.checkpoint, stage="train")
    folder = Path(source.location).expanduser()
    return recorded_history(folder) if folder.is_dir() else None


def history_of_run(run_dir: Path, checkpoint: Path, *, stage: Literal["train", "sft"]) -> History | None:
    """Return the history of a run's checkpoint; None if the run's manifest is missing.

    Raises:
        ValueError: a file of the run is broken.
    """
    if not (run_dir / MANIFEST_FILE).is_file():
        return None
    newest = read_json_object(run_dir / MANIFEST_FILE)
    progress = read_json_object(checkpoint / _STATE).get("progress")
    steps = progress.get("optimizer_steps", 0) if isinstance(progress, dict) else 0
    starts = earlier_starts(newest, before=steps) or [newest]
    manifest = starts[-1]  # a later start trained another checkpoint
    recipe, versions = manifest.get("recipe"), manifest.get("versions")
    if not isinstance(recipe, dict) or not isinstance(versions, dict) or not isinstance(progress, dict):
        raise ValueError(
            f"{run_dir / MANIFEST_FILE} or {checkpoint / _STATE}: expected recipe and versions, and progress, found "
            "something else; put the files back"
        )
    played: dict[str, Any] = progress if stage == "train" else {}
    source: dict[str, Any] = manifest.get("source") or {}
    base = (recipe.get("policy") or {}).get("checkpoint")
    return History(
        stage=stage,
        run=str(recipe.get("name")),
        recipe=shareable(recipe),
        optimizer_steps=int(steps),
        env_steps=played.get("env_steps"),
        episodes=played.get("episodes"),
        started=manifest.get("started"),
        versions={package: version for package, version in versions.items() if version is not None},
        commit=source.get("commit"),
        has_local_changes=bool(source.get("dirty")),
        deviations=tuple(manifest.get("deviations", ())),
        base=None if base is None else _without_folders("checkpoint", base),
        base_history=None if base is None else _history_of_base(Path(base).expanduser(), directory_of(manifest)),
        changes=tuple(
            changes_in_words([{**start, "recipe": shareable(start.get("recipe") or {})} for start in starts])
        ),
    )


def _history_of_base(folder: Path, started_in: Path | None) -> History | None:
    if not folder.is_dir() and started_in is not None:
        folder = started_in / folder
    return recorded_history(folder) if folder.is_dir() else None


def shareable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe as plain values without what is about the machines: sections, addresses, folders in paths."""
    return {name: _shared(name, value) for name, value in recipe.items() if name not in _OF_THE_MACHINE}


def _shared(name: str, value: Any) -> Any:  # noqa: ANN401 - any value of a recipe
    if isinstance(value, Mapping):
        return {inner: _shared(inner, below) for inner, below in value.items() if inner != _ADDRESSES}
    return _without_folders(name, value) if isinstance(value, str) else value


def _without_folders(name: str, text: str) -> str:
    """Return the last part of a path; a name on the hub, which is no folder here, stays whole."""
    is_path = name in ("checkpoint", "path", "cache", "assets") and "/" in text
    if text.startswith(("/", "~/", "./", "../")) or (is_path and not is_hub_id(text)):
        return Path(text).name
    return text


def record_history(directory: Path, history: History | None, *, exported_from: str | None = None) -> None:
    """Add the history, and the fingerprint of what was exported, to the record of a policy's folder."""
    path = directory / RECORD_FILE
    added = {_FIELD: None if history is None else asdict(history), _FINGERPRINT: exported_from}
    atomic_write_json(path, {**read_json(path), **{name: value for name, value in added.items() if value is not None}})


def recorded_history(directory: Path) -> History | None:
    """Return the history in the record of a folder; None if there is none.

    Raises:
        ValueError: the record is broken.
    """
    path = directory / RECORD_FILE
    found = read_json(path).get(_FIELD) if path.is_file() else None
    return None if found is None else _read(found, path)


def exported_from(directory: Path) -> str | None:
    """Return the fingerprint of the policy that an export was made of; None if its record does not tell it."""
    path = directory / RECORD_FILE
    found = read_json(path).get(_FINGERPRINT) if path.is_file() else None
    if not isinstance(found, str | None):
        raise ValueError(f"{path}: {_FINGERPRINT} is {found!r}; expected a fingerprint, or no such field")
    return found


def _read(found: object, path: Path) -> History:
    known = {field.name for field in fields(History)}
    if not isinstance(found, dict) or not known - {"changes"} <= found.keys() or not isinstance(found["recipe"], dict):
        shown = json.dumps(found, ensure_ascii=False)[:80]
        raise ValueError(f"{path}: {_FIELD} is {shown}; expected what an export writes there, or no such field")
    values = {name: found.get(name, ()) for name in known}  # older ones have no changes
    values |= {name: tuple(values[name]) for name in ("deviations", "changes")}
    values["base_history"] = None if found["base_history"] is None else _read(found["base_history"], path)
    return History(**values)
