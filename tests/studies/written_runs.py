"""Finished runs of the Meta-World study, written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vla_rl.studies.metaworld.grid import Grid, StudyRun


def write_run(
    folder: Path,
    run: StudyRun,
    *,
    grid: Grid,
    records: Iterable[Mapping[str, Any]],
    manifest: Mapping[str, Any],
    seconds: float = 1.0,
) -> None:
    """Write a finished run as `vla-rl train` and the study leave it."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    (folder / "recipe.yaml").write_text(grid.recipe_of(run).dump_yaml(), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    values = {"task": run.task, "surrogate": run.surrogate, "regime": run.regime, "seed": run.seed, "seconds": seconds}
    (folder / "study_run.json").write_text(json.dumps(values), encoding="utf-8")
