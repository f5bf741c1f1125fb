"""Index of the runs below a folder, read from their files alone. A run with broken files is listed with the reason.

Only the end of `metrics.jsonl` is read, so that long runs are listed as fast as short ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.files import ordinary, read_json_object
from vla_rl.reporting.manifest import MANIFEST_FILE
from vla_rl.reporting.metrics_file import METRICS_FILE, is_number, parse_point
from vla_rl.reporting.run_folder import RECIPE_FILE, reward_scale
from vla_rl.reporting.run_state import last_sign, read_state

DEEPEST = 4  # levels below the folder that is searched
TAIL_BYTES = 1 << 18
SUCCESS = ("rollout/success_rate", "supervised/success_rate")


@dataclass(frozen=True, slots=True)
class IndexedRun:
    """One run in the index. None: unknown."""

    path: Path
    state: str  # running, finished, interrupted, failed, unknown, or broken
    reason: str  # one sentence, or empty
    started: str | None = None  # ISO 8601; the newest start, if the run was resumed
    seen: float | None = None  # when it last wrote something, in seconds since 1970
    success_rate: float | None = None  # of the recent training episodes; of a supervised run, the newest evaluation's
    mean_return: float | None = None  # of the recent training episodes, in the env's own units
    optimizer_steps: int | None = None
    budget_optimizer_steps: int | None = None
    env_steps: int | None = None
    episodes: int | None = None
    seconds: float | None = None  # of training


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of runs at or below a folder, at most `DEEPEST` levels down, sorted by path.

    A run is a folder with a `recipe.yaml` or a `metrics.jsonl`. Folders inside a run, hidden ones and links are not
    searched; a folder that may not be read is passed over.
    """
    return sorted(_runs_below(folder, DEEPEST))


def _runs_below(folder: Path, levels: int) -> Iterator[Path]:
    if any(os.path.lexists(folder / name) for name in (RECIPE_FILE, METRICS_FILE)):
        yield folder
        return
    if levels == 0:
        return
    try:
        inner = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for entry in inner:
        if not entry.name.startswith("."):
            yield from _runs_below(folder / entry.name, levels - 1)


def index_run(folder: Path) -> IndexedRun:
    """Read one row of the index; a broken run is one whose state is `broken`."""
    try:
        return _index(folder)
    except (OSError, ValueError) as error:
        seen = last_sign(folder)
        return IndexedRun(folder, "broken", str(error), seen=seen)


def _index(folder: Path) -> IndexedRun:
    manifest_file = folder / MANIFEST_FILE
    manifest = read_json_object(manifest_file) if os.path.lexists(manifest_file) else {}
    recipe = manifest.get("recipe")
    points = read_tail(folder / METRICS_FILE)
    end = points[-1] if points else {}
    budget = budget_of(manifest)
    state = read_state(folder, is_spent=is_spent(end, recipe))
    returned = _newest(points, "rollout/return")
    return IndexedRun(
        folder,
        state.state,
        state.reason,
        started=manifest.get("started") if isinstance(manifest.get("started"), str) else None,
        seen=state.seen,
        success_rate=next((value for name in SUCCESS if (value := _newest(points, name)) is not None), None),
        mean_return=None if returned is None else returned / reward_scale(manifest),
        optimizer_steps=end.get("optimizer_steps", 0 if manifest else None),
        budget_optimizer_steps=budget,
        env_steps=end.get("env_steps"),
        episodes=end.get("episodes"),
        seconds=end.get("seconds"),
    )


def budget_of(manifest: Mapping[str, Any]) -> int | None:
    """Return how many optimizer steps a run may make; None if its manifest does not tell."""
    match manifest:
        case {"recipe": {"budget": {"optimizer_steps": int() as steps}}}:
            return steps
    return None


def is_spent(end: Mapping[str, Any], recipe: object) -> bool:
    """Return whether a log point reaches the end of a recipe's budget, in optimizer steps, env steps or minutes."""
    match recipe:
        case {"budget": dict() as budget} if end:
            limits = ((budget.get(name), end[name]) for name in ("optimizer_steps", "env_steps"))
            minutes = budget.get("minutes")
            return any(isinstance(limit, int) and reached >= limit for limit, reached in limits) or (
                isinstance(minutes, int | float) and end["seconds"] > 60 * minutes
            )
    return False


def read_tail(path: Path, *, num_bytes: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """Read the log points in the last part of a `metrics.jsonl`, oldest first; none if there is no file.

    Raises:
        ValueError: the last part holds text and no log point, or the file is no ordinary file.
        OSError: it cannot be read.
    """
    if not os.path.lexists(path):
        return []
    with ordinary(path).open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - num_bytes))
        lines = stream.read(num_bytes).split(b"\n")
    if size > num_bytes:
        del lines[0]  # probably not whole
    points = [point for line in lines if (point := parse_point(line)) is not None]
    whole = [line for line in lines[:-1] if line.strip()]
    if whole and not points:
        raise ValueError(f"{path}: expected log points, found {whole[-1][:60]!r}; put the file back or remove it")
    return points


def _newest(points: list[dict[str, Any]], name: str) -> float | None:
    values = (point.get(name) for point in reversed(points))
    return next((value for value in values if is_number(value)), None)


def as_json(run: IndexedRun, *, now: float) -> str:
    """Return a row of the index as one JSON object; `age_seconds` is the time since the run last wrote something."""
    values = {
        "path": str(run.path),
        "state": run.state,
        "reason": run.reason,
        "started": run.started,
        "age_seconds": None if run.seen is None else round(max(0.0, now - run.seen), 1),
        "success_rate": run.success_rate,
        "mean_return": run.mean_return,
        "optimizer_steps": run.optimizer_steps,
        "budget_optimizer_steps": run.budget_optimizer_steps,
        "env_steps": run.env_steps,
        "episodes": run.episodes,
        "seconds": run.seconds,
    }
    return json.dumps(values)  # in ASCII: the bytes of a folder's name need not be UTF-8
