"""Evaluations of one policy: those whose files say that they played it, and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError
from vla_rl.evaluation.history import exported_from
from vla_rl.evaluation.policy_source import PolicySource
from vla_rl.files import read_json_object
from vla_rl.reporting.manifest import MANIFEST_FILE
from vla_rl.reporting.run_folder import RESULTS_FILE
from vla_rl.reporting.run_layout import WHILE_TRAINING

_EXPECTED = ("confidence", "suites", "tasks", "notes", "evaluation", "deviations", "controls")


@dataclass(frozen=True, slots=True)
class Scores:
    """One evaluation of the policy."""

    folder: Path
    results: Mapping[str, Any]  # results.json
    manifest: Mapping[str, Any]  # its manifest; empty if there is none
    before_export: bool  # it played the checkpoint that this policy was exported from, not its written weights


def scores_of(source: PolicySource, given: Sequence[Path]) -> list[Scores]:
    """Return the evaluations of a policy, by name of their folder: those where its results go, and those given.

    Args:
        source: the policy.
        given: folders of evaluations, or their `results.json`.

    Raises:
        UserError: a given one is no evaluation, or one of another policy.
        ValueError: a file is broken.
    """
    folder = Path(source.location).expanduser()
    original = exported_from(folder) if source.checkpoint is None and folder.is_dir() else None
    found: dict[Path, Scores] = {}
    patterns = (f"*/{RESULTS_FILE}", f"{WHILE_TRAINING}/*/{RESULTS_FILE}", RESULTS_FILE)
    for path in [path for pattern in patterns for path in sorted(source.home.glob(pattern))]:
        if path.is_file() and (scores := _read(path, source, original)) is not None:
            found[path.resolve()] = scores
    for path in given:
        file = path if path.name == RESULTS_FILE else path / RESULTS_FILE
        if not file.is_file():
            raise UserError(f"--eval: {path} holds no {RESULTS_FILE}; name the folder of an evaluation that has ended")
        of_policy = _read(file, source, original)
        if of_policy is None:
            played = read_json_object(file).get("evaluation", {}).get("checkpoint", "another policy")
            raise UserError(
                f"--eval: {path} is an evaluation of {played}, whose weights or settings are not those of "
                f"{source.location}; a card has no scores of other policies"
            )
        found[file.resolve()] = of_policy
    return list(found.values())


def _read(file: Path, source: PolicySource, original: str | None) -> Scores | None:
    """Return an evaluation; None if it played another policy."""
    results = read_json_object(file)
    if missing := [key for key in _EXPECTED if key not in results]:
        raise ValueError(
            f"{file}: expected the results of an evaluation, found no {', '.join(missing)}; evaluate again or remove it"
        )
    fingerprint = results["evaluation"].get("fingerprint")
    if fingerprint not in (source.fingerprint, original) or fingerprint is None:
        return None
    manifest = file.parent / MANIFEST_FILE
    return Scores(
        folder=file.parent,
        results=results,
        manifest=read_json_object(manifest) if manifest.is_file() else {},
        before_export=fingerprint != source.fingerprint,
    )
