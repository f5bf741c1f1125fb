"""Reader of a run's folder for reports. Only the metrics are required: a run that died early has a report too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from vla_rl.files import read_json_object
from vla_rl.reporting.alarms import Alarm, read_alarms
from vla_rl.reporting.manifest import MANIFEST_FILE, directory_of
from vla_rl.reporting.metrics_file import METRICS_FILE, is_number, read_metrics
from vla_rl.reporting.run_layout import EVALUATIONS, WHILE_TRAINING
from vla_rl.reporting.run_state import read_state
from vla_rl.reporting.series import Records

RECIPE_FILE = "recipe.yaml"
POLICY_FOLDER = "policy"  # of a supervised run: its policy in the public layout
RESULTS_FILE = "results.json"  # of one evaluation


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of a run."""

    name: str  # name of its folder below eval/, or "eval"
    results: Mapping[str, Any]  # results.json: confidence, suites, tasks, notes
    deviations: tuple[str, ...]  # from its own manifest


@dataclass(frozen=True, slots=True)
class WrittenRun:
    """One run, as far as it was written."""

    name: str
    records: Records  # returns in the env's own units if a manifest gives the reward scale
    recipe: str | None  # YAML text
    manifest: Mapping[str, Any] | None
    evaluations: tuple[Evaluation, ...]
    alarms: tuple[Alarm, ...] = ()
    reason: str = ""  # why it finished before its budget was spent; empty: it did not


def read_run(folder: Path) -> WrittenRun:
    """Read a run's folder.

    Raises:
        ValueError: the folder is not a run, or one of its files is broken.
    """
    metrics = folder / METRICS_FILE
    if not metrics.is_file():
        raise ValueError(
            f"{folder}: expected the folder of a run with a {METRICS_FILE}, found none; `vla-rl runs DIR` lists runs"
        )
    recipe = folder / RECIPE_FILE
    manifest = _read_json(folder / MANIFEST_FILE)
    state = read_state(folder, is_spent=False)
    return WrittenRun(
        name=folder.resolve().name,
        records=_unscaled(read_metrics(metrics), manifest or {}),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
        manifest=manifest,
        evaluations=tuple(read_evaluation(path, below=folder) for path in results_of(folder)),
        alarms=tuple(read_alarms(folder)),
        reason=state.reason if state.state == "finished" else "",
    )


def _unscaled(records: Records, manifest: Mapping[str, Any]) -> Records:
    """Return log points with unscaled returns; the learner's rewards are the env's times the recipe's scale."""
    scale = reward_scale(manifest)
    if scale == 1:
        return records
    return [
        record | {"rollout/return": value / scale} if (value := record.get("rollout/return")) is not None else record
        for record in records
    ]


def reward_scale(manifest: Mapping[str, Any]) -> float:
    """Return the factor between the env's rewards and those that were written; 1 if a manifest tells none."""
    match manifest:
        case {"recipe": {"env": {"reward_scale": int() | float() as scale}}} if is_number(scale) and scale != 0:
            return float(scale)
    return 1.0


def started_in(folder: Path) -> Path | None:
    """Return the directory that a run was last started in; None if its manifest does not tell, or is broken."""
    try:
        return directory_of(_read_json(folder / MANIFEST_FILE) or {})
    except ValueError:
        return None


def as_argument(folder: Path) -> str:
    """Return a run's folder as it can be typed behind a verb, where a bare name would mean a recipe."""
    text = str(folder)
    return quote(text if "/" in text else f"./{text}")


def results_of(folder: Path) -> list[Path]:
    """Return the results of a run's evaluations, sorted by path; of those while training only the newest.

    The log points hold the rates of all of them.
    """
    evaluations = folder / EVALUATIONS
    found = sorted(evaluations.rglob(RESULTS_FILE))
    meanwhile = [path for path in found if path.relative_to(evaluations).parts[0] == WHILE_TRAINING]
    newest = max(meanwhile, key=lambda path: path.stat().st_mtime, default=None)
    return [path for path in found if path not in meanwhile or path == newest]


def read_evaluation(path: Path, *, below: Path) -> Evaluation:
    """Read the results of an evaluation of the run in a folder.

    Raises:
        ValueError: they are broken.
    """
    results = _read_json(path)
    missing = [key for key in ("confidence", "suites", "tasks", "notes") if key not in (results or {})]
    if results is None or missing:
        raise ValueError(
            f"{path}: expected the results of an evaluation, found no {', '.join(missing)}; remove the file"
        )
    manifest = _read_json(path.parent / MANIFEST_FILE) or {}
    name = path.parent.relative_to(below).as_posix().removeprefix(f"{EVALUATIONS}/")
    return Evaluation(name=name, results=results, deviations=tuple(manifest.get("deviations", ())))


def _read_json(path: Path) -> dict[str, Any] | None:
    return read_json_object(path) if path.is_file() else None
