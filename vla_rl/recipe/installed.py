"""Packages that a recipe asks for and that are missing here: faults of a run, not of the recipe.

A recipe that names a tracker can be read, evaluated and exported on a machine without its library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from vla_rl.recipe.shape import field_sections
from vla_rl.section import Problem
from vla_rl.tracking import Tracker, TrackersSection

_ENCODER = "imageio-ffmpeg"


def missing_packages(data: Mapping[str, Any]) -> list[Problem]:
    """Return a problem for each field of a recipe's raw data that needs a package which is not installed."""
    return [
        *_of_trackers(data.get("logging")),
        *_of_videos(data.get("evaluation")),
        *_of_other_machines(data.get("rollout")),
    ]


def _of_trackers(logging: object) -> Iterator[Problem]:
    for name in TrackersSection.model_fields:
        if not isinstance(logging, Mapping) or logging.get(name) is None:
            continue
        for kind in field_sections(TrackersSection, name):
            assert issubclass(kind, Tracker)
            if not kind.is_installed():
                yield _missing(f"logging.{name}", " or ".join(kind.packages), kind.extra)


def _of_videos(evaluation: object) -> Iterator[Problem]:
    if not isinstance(evaluation, Mapping) or evaluation.get("video") is None:
        return
    try:
        metadata.version(_ENCODER)
    except metadata.PackageNotFoundError:
        yield _missing("evaluation.video", _ENCODER, "video")


def _of_other_machines(rollout: object) -> Iterator[Problem]:
    if not isinstance(rollout, Mapping) or not rollout.get("remote"):
        return
    try:
        for package in ("ray", "grpcio"):
            metadata.version(package)
    except metadata.PackageNotFoundError:
        yield _missing("rollout.remote", "ray[client]", "remote", off="[]")


def _missing(path: str, package: str, extra: str, *, off: str = "null") -> Problem:
    return Problem(
        path=path,
        rule=f"needs {package}, which is not installed",
        allowed=off,
        hint=f"pip install 'vla-rl[{extra}]'",
    )
