"""Work of a study for tests: jobs in a folder, without a study of any kind around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vla_rl.studies.jobs import Job, Work


def some_work(out: Path, jobs: Sequence[Job], *, kind_field: str = "name") -> Work:
    """Return jobs whose folders are in `out/jobs`, and whose records are `done.json`."""
    return Work(
        jobs=jobs,
        out=out,
        folder=out / "jobs",
        begin=lambda: None,
        record_file="done.json",
        noun="jobs",
        what="the study",
        kind_field=kind_field,
    )
