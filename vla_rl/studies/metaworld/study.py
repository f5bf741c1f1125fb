"""Data of a Meta-World study, from which its results are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vla_rl.studies.metaworld.missing import MissingRun
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.metaworld.scores import Improvement, Score


@dataclass(frozen=True, slots=True)
class Study:
    """Data of a study."""

    planned: int  # runs
    missing: Sequence[MissingRun]
    optimizer_steps: int  # budget of every run
    recipe: str  # name or path
    results: RunTable
    broken: Sequence[str]  # a sentence about each finished run that cannot be read
    scores: Sequence[Score]
    improvements: Sequence[Improvement]
    random_returns: Mapping[str, float]
